"""Requests to a server that still loads: the official client waits in it, or comes back when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.coldstream import Server, serving, wait_for
from tests.e2e.valve import Valve
from tools.blob_server import BlobServer, Fault
from tools.random_checkpoint import PROMPT_TOKEN_IDS

ASKED = {"model": "m", "prompt": list(PROMPT_TOKEN_IDS), "max_tokens": 1, "temperature": 0}
WAIT = {"X-Coldstream-Wait": "120"}


@contextlib.contextmanager
def loading_server(folder: Path, log_path: Path, **source_options: Any) -> Iterator[Server]:
    """A server that has begun to load."""
    with (
        BlobServer(folder, **source_options) as source,
        serving(source.url, "--stream-keep-alive", "0.5", log_path=log_path) as server,
    ):
        wait_for(lambda: is_loading(server))
        yield server


@pytest.fixture
def valve():
    """The source's; no weight comes before a test opens it."""
    valve = Valve()
    yield valve
    valve.opened.set()


@pytest.fixture
def loading(small_model, valve, tmp_path):
    """A server that loads until the valve is opened."""
    with loading_server(small_model.folder, tmp_path / "log", hook=valve) as server:
        yield server


def is_loading(server: Server) -> bool:
    try:
        return server.health()[1]["state"] == "loading"
    except httpx.TransportError:
        return False


def held(server: Server) -> int:
    text = server.client.get("/metrics").text
    return int(float(re.search(r"^coldstream_requests_held (\S+)$", text, re.MULTILINE)[1]))


def ask_early(server: Server, hooks=None, **options) -> openai.AsyncOpenAI:
    http = httpx.AsyncClient(event_hooks=hooks or {}, timeout=120)
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http, **options)


async def test_the_official_client_waits_in_the_server(loading, valve, small_model):
    """Sent while weights land, a whole answer and a stream come right after readiness, without a retry."""
    async with ask_early(loading, max_retries=0) as client:
        whole = asyncio.create_task(client.completions.create(**ASKED, extra_headers=WAIT))
        stream = await client.completions.create(**ASKED, stream=True, extra_headers=WAIT)
        assert loading.health()[1]["state"] == "loading"  # so comments have opened the stream
        await asyncio.to_thread(wait_for, lambda: held(loading) == 2)
        valve.opened.set()
        text = "".join([chunk.choices[0].text async for chunk in stream])
        assert (await whole).choices[0].text == text
    assert text == small_model.continuation()
    assert held(loading) == 0
    startup = loading.client.get("/startupz").json()
    # The process's first token is one of theirs.
    assert startup["durations"]["ttft_s"] < 5


async def test_the_official_client_comes_back_when_it_is_told_to(small_model, tmp_path):
    """Without the header it gets a 503, waits for as long as Retry-After says, and is answered then."""
    asked_s, told_s = [], []

    async def note_request(_):
        asked_s.append(time.monotonic())

    async def note_response(response):
        if response.status_code == 503:
            told_s.append(int(response.headers["retry-after"]))

    hooks = {"request": [note_request], "response": [note_response]}
    # 59 MB in five seconds.
    with loading_server(small_model.folder, tmp_path / "log", bytes_per_s=12e6) as loading:
        # The first bytes say little of the rate: until then it may be told to wait for two minutes.
        await asyncio.to_thread(wait_for, lambda: (loading.health()[1]["eta_s"] or 60) < 6)
        async with ask_early(loading, hooks, max_retries=10) as client:
            answer = await client.completions.create(**ASKED)
    assert answer.choices[0].text == small_model.continuation()
    assert told_s
    assert len(asked_s) == len(told_s) + 1
    waits_s = [later - earlier for earlier, later in itertools.pairwise(asked_s)]
    assert all(wait_s >= told for wait_s, told in zip(waits_s, told_s, strict=True))


async def ask_twice(server: Server, headers: dict[str, str], opened: asyncio.Event) -> tuple[httpx.Response, list[str]]:
    """A whole answer and a stream's lines, both of which wait; the stream has been `opened` with its first line."""

    async def lines() -> list[str]:
        found = []
        async with client.stream("POST", "/v1/completions", json=ASKED | {"stream": True}) as stream:
            async for line in stream.aiter_lines():
                found.append(line)
                opened.set()
        return [line for line in found if line]

    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
        return await asyncio.gather(client.post("/v1/completions", json=ASKED), lines())


async def asked_twice(server: Server, headers: dict[str, str]) -> asyncio.Task:
    """The same as a task, once both wait and the stream is open."""
    opened = asyncio.Event()
    answers = asyncio.create_task(ask_twice(server, headers, opened))
    async with asyncio.timeout(30):
        await opened.wait()
    await asyncio.to_thread(wait_for, lambda: held(server) == 2)
    return answers


def check_refused(answers: tuple[httpx.Response, list[str]], words: str) -> None:
    """A status for the one, an event for the other, whose headers had gone."""
    whole, lines = answers
    assert whole.status_code == 503
    assert whole.headers["connection"] == "close"
    assert int(whole.headers["retry-after"]) >= 1
    assert words in whole.json()["error"]["message"]
    assert lines[0] == ": keep-alive"
    assert words in lines[-1]
    assert "data: [DONE]" not in lines


async def test_sigterm_ends_what_waits(loading):
    """At once, each with its refusal, and the server with 0."""
    answers = await asked_twice(loading, WAIT)
    os.kill(loading.pid, signal.SIGTERM)
    check_refused(await answers, "draining: shutting down")
    _, status = await asyncio.to_thread(os.waitpid, loading.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "Traceback" not in loading.log()


async def test_a_load_that_fails_ends_what_waits(demo_model_dir, tmp_path):
    """Whoever waits, here because the server lets everybody, learns the reason; the server exits with its code."""
    is_gone = False
    flags = ("--while-loading", "wait", "--stream-keep-alive", "0.5")

    def hook(request):
        return Fault(status=404) if is_gone and request.path.endswith(".safetensors") else None

    with (
        BlobServer(demo_model_dir, bytes_per_s=30e6, hook=hook) as source,
        serving(source.url, *flags, log_path=tmp_path / "log") as server,
    ):
        await asyncio.to_thread(wait_for, lambda: is_loading(server))
        answers = await asked_twice(server, {})
        is_gone = True
        check_refused(await answers, "not ready: failed: ")
        _, status = await asyncio.to_thread(os.waitpid, server.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3

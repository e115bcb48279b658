"""Many streams at once, half of them cut by their clients: nothing is left of those, and the others do not notice."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from app.service import Patience
from tests.coldstream import Server, serving
from tests.unit.scripted_engine import listening, serve

SEED = 7
STREAMS = 200
TOKENS = 24
CONTEXT_TOKENS = 2048
# Of the tiny model in float32: 2 layers of keys and values, 2 heads of 16 each.
BYTES_PER_TOKEN = 2 * 2 * 2 * 16 * 4


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory) -> Iterator[Server]:
    """One whose cache holds one sequence of the whole context, so that a lost block would be missed by it."""
    flags = ("--dtype", "float32", "--max-model-len", str(CONTEXT_TOKENS))
    cache = ("--kv-cache-memory-bytes", str(CONTEXT_TOKENS * BYTES_PER_TOKEN))
    log_path = tmp_path_factory.mktemp("leaving") / "log"
    with serving(str(tiny_model), *flags, *cache, log_path=log_path) as running:
        running.wait_ready()
        yield running


# A connection that is kept would be held longer than the request.
CLOSE = {"connection": "close"}


async def read(client: httpx.AsyncClient, model: str, number: int, cut_after: int | None) -> str:
    """The text of one stream, as far as it was read: to its end, or to so many chunks."""
    body = {"model": model, "prompt": f"Item {number}:", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    text, chunks = "", 0
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        assert response.status_code == 200
        if cut_after == 0:
            return text
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                text += chunk["choices"][0]["text"]
                chunks += 1
                if chunks == cut_after:
                    return text
    assert line in ("", "data: [DONE]")
    return text


async def run(url: str, cuts: list[int | None], *, model: str = "m") -> list[str]:
    """Every stream at once; a stream is cut after so many chunks, before its answer begins (-1), or never (None)."""
    limits = httpx.Limits(max_connections=len(cuts))
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        tasks = [asyncio.create_task(read(client, model, number, cut)) for number, cut in enumerate(cuts)]
        await asyncio.sleep(0.3)
        for task, cut in zip(tasks, cuts, strict=True):
            if cut == -1:
                task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for each in ended:
        if isinstance(each, Exception):
            raise each
    return [each if isinstance(each, str) else "" for each in ended]


def cuts(count: int) -> list[int | None]:
    """Half of the streams are cut, each at a moment of its own."""
    chance = random.Random(SEED)
    cut = set(chance.sample(range(count), count // 2))
    return [chance.choice([-1, *range(TOKENS)]) if number in cut else None for number in range(count)]


def descriptors(server: Server) -> list[int]:
    """How many each process holds; connections are closed a moment after their clients are."""
    processes = [psutil.Process(server.pid), *server.family()]
    counts: list[int] = []
    for _ in range(50):
        before, counts = counts, [process.num_fds() for process in processes]
        if counts == before:
            break
        time.sleep(0.1)
    return counts


def test_clients_that_leave_take_everything_along(server: Server):
    """The streams that are read to the end say what they say undisturbed; afterwards no descriptor, sequence or block is missing."""
    undisturbed = asyncio.run(run(server.url, [None] * STREAMS))
    held = descriptors(server)
    disturbed = asyncio.run(run(server.url, planned := cuts(STREAMS)))
    for text, whole, cut in zip(disturbed, undisturbed, planned, strict=True):
        assert whole.startswith(text)
        assert cut is not None or text == whole
    # All that the server ever takes at once, which it would refuse if it still counted anybody.
    taken = server.client.post(
        "/v1/completions", json={"model": "m", "prompt": [[1]] * 256, "max_tokens": 1}, timeout=120, headers=CLOSE
    )
    assert taken.status_code == 200
    # And a sequence that needs every block.
    prompt = [each % 1500 + 300 for each in range(CONTEXT_TOKENS - 1)]
    full = server.client.post(
        "/v1/completions", json={"model": "m", "prompt": prompt, "max_tokens": 1}, timeout=120, headers=CLOSE
    )
    assert full.json()["usage"]["total_tokens"] == CONTEXT_TOKENS
    assert all(now <= then for now, then in zip(descriptors(server), held, strict=True))


async def test_no_task_is_left_of_clients_that_leave():
    """In one process with a scripted engine: as many tasks as before, no sequence, and every cut one aborted."""
    served = serve(lambda submit: submit.prompt_token_ids * 20, max_sequences=200, patience=Patience(60, 0.05))
    async with listening(served.app) as url:
        await run(url, [None], model="toy")
        before = len(asyncio.all_tasks())
        planned = cuts(100)
        texts = await run(url, planned, model="toy")
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110 - connections close a moment after their clients
                await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) == before
        async with asyncio.timeout(5):
            await served.service.engine.drained()
    assert all(text for text, cut in zip(texts, planned, strict=True) if cut is None)

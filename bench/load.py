"""Load on a completions endpoint: streams of random prompts, and what their clients saw.

Takes a server's URL and a shape of load; knows neither which server it is nor how it was started. A closed loop
keeps so many requests running; an open one begins them at a fixed rate, however slow the answers are.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import aiohttp

_DATA = b"data: "
_DONE = b"[DONE]"


@dataclass(frozen=True)
class Shape:
    """What every request asks for: random prompts of `input_tokens`, answers of exactly `output_tokens`."""

    input_tokens: int
    output_tokens: int
    vocab_size: int


@dataclass(frozen=True)
class Endpoint:
    """A server and the name of its model."""

    url: str
    model: str


@dataclass(frozen=True)
class Answer:
    """One stream: seconds to its first token, the seconds between tokens, and how many there were."""

    ttft_s: float
    gaps_s: tuple[float, ...]
    output_tokens: int


class LoadFailed(Exception):
    """The server refused a request or cut a stream."""


def closed_loop(endpoint: Endpoint, shape: Shape, *, concurrency: int, requests: int) -> dict[str, float]:
    """Keep `concurrency` requests running until there have been `requests`.

    Raises:
        LoadFailed: One of them was not answered in full.
    """
    return asyncio.run(_measure(_closed(endpoint, shape, concurrency, requests)))


def open_loop(endpoint: Endpoint, shape: Shape, *, requests_per_s: float, requests: int) -> dict[str, float]:
    """Begin a request every 1 / `requests_per_s` seconds.

    Raises:
        LoadFailed: One of them was not answered in full.
    """
    return asyncio.run(_measure(_open(endpoint, shape, requests_per_s, requests)))


def prompts_of(shape: Shape, requests: int) -> list[list[int]]:
    """Random token ids, the same ones every time; no two share a prefix."""
    rng = random.Random(0)
    return [[rng.randrange(10, shape.vocab_size) for _ in range(shape.input_tokens)] for _ in range(requests)]


async def _measure(answers: AsyncIterator[Answer]) -> dict[str, float]:
    start_s = time.perf_counter()
    seen = [answer async for answer in answers]
    return figures(seen, time.perf_counter() - start_s)


def figures(answers: Sequence[Answer], seconds: float) -> dict[str, float]:
    """Output tokens per second, and percentiles in milliseconds."""
    found = {"output_tokens_per_s": round(sum(answer.output_tokens for answer in answers) / seconds, 1)}
    for name, values in (
        ("ttft", [answer.ttft_s for answer in answers]),
        ("gap", [gap for answer in answers for gap in answer.gaps_s]),
    ):
        ordered = sorted(values)
        for percent in (50, 95, 99):
            rank = min(len(ordered) - 1, len(ordered) * percent // 100)
            found[f"{name}_p{percent}_ms"] = round(ordered[rank] * 1e3, 2) if ordered else 0.0
    return found


async def _closed(endpoint: Endpoint, shape: Shape, concurrency: int, requests: int) -> AsyncIterator[Answer]:
    prompts = iter(prompts_of(shape, requests))
    answers: list[Answer] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for prompt in prompts:
            answer = await _ask(session, endpoint, shape, prompt)
            answers.append(answer)

    async with _session() as session, asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client(session))
    for answer in answers:
        yield answer


async def _open(endpoint: Endpoint, shape: Shape, requests_per_s: float, requests: int) -> AsyncIterator[Answer]:
    start_s = time.perf_counter()
    async with _session() as session, asyncio.TaskGroup() as clients:
        asked = []
        for number, prompt in enumerate(prompts_of(shape, requests)):
            await asyncio.sleep(start_s + number / requests_per_s - time.perf_counter())
            asked.append(clients.create_task(_ask(session, endpoint, shape, prompt)))
    for task in asked:
        yield task.result()


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None), connector=aiohttp.TCPConnector(limit=0))


async def _ask(session: aiohttp.ClientSession, endpoint: Endpoint, shape: Shape, prompt: list[int]) -> Answer:
    body = {
        "model": endpoint.model,
        "prompt": prompt,
        "max_tokens": shape.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    times_s = [time.perf_counter()]
    tokens = 0
    async with session.post(f"{endpoint.url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise LoadFailed(f"{response.status}: {(await response.text())[:300]}")
        async for event in _events(response):
            if usage := event.get("usage"):
                tokens = usage["completion_tokens"]
            if event.get("choices"):
                times_s.append(time.perf_counter())
    if tokens != shape.output_tokens or len(times_s) < 2:
        raise LoadFailed(f"{tokens} of {shape.output_tokens} tokens came")
    gaps_s = tuple(after - before for before, after in itertools.pairwise(times_s[1:]))
    return Answer(times_s[1] - times_s[0], gaps_s, tokens)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict]:  # type: ignore[type-arg]
    async for line in response.content:
        if line.startswith(_DATA) and not line.startswith(_DATA + _DONE):
            yield json.loads(line[len(_DATA) :])

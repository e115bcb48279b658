"""Random bodies against a whole server: never a failure of ours, and it goes on serving."""

from __future__ import annotations

import asyncio
import collections
import json
import random

import httpx
import pytest

from tests.conformance.fuzzed_bodies import fuzzed

SEED = 20261122
EXPECTED = {200, 400, 404, 413, 429}


def check_envelope(response: httpx.Response) -> None:
    """Refusals are OpenAI's envelope, answers JSON or events without an error."""
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in response.text
        return
    json.loads(response.text)


async def send(client: httpx.AsyncClient, number: int) -> int:
    """One random request; its number makes it again."""
    path, body = fuzzed(random.Random(SEED + number))
    while True:
        response = await client.post(path, content=body, headers={"content-type": "application/json"})
        if response.status_code != 429:
            break
        await asyncio.sleep(0.1)
    assert response.status_code in EXPECTED, (number, path, body[:2000], response.text)
    try:
        check_envelope(response)
    except Exception as exc:
        raise AssertionError((number, path, body[:2000], response.text[-2000:])) from exc
    return response.status_code


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(1200)
async def test_no_body_breaks_the_server(short_server, count):
    """Every answer is a good one or a refusal, and then the server answers as it did."""
    before = short_server.complete("Hello", max_tokens=8)["choices"]
    statuses: collections.Counter[int] = collections.Counter()
    numbers = iter(range(count))

    async def worker(client: httpx.AsyncClient) -> None:
        for number in numbers:
            statuses[await send(client, number)] += 1

    async with httpx.AsyncClient(base_url=short_server.url, timeout=120) as client:
        await asyncio.gather(*(worker(client) for _ in range(8)))
    assert statuses.total() == count
    assert min(statuses[200], statuses[400]) > count / 20  # neither all nothing nor all nonsense
    assert short_server.complete("Hello", max_tokens=8)["choices"] == before
    assert short_server.health()[0] == 200

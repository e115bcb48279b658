"""Large prompts: they are read beside everything else, not before it."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from app.text.text_model import TextModel
from tests.unit.scripted_engine import MAX_MODEL_LEN, listening, serve

# Long enough to be told from every other text: how long it takes is up to the test.
LARGE = "word " * 4_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": LARGE}),
        ("/v1/completions", {"prompt": LARGE, "echo": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LARGE}]}),
        ("/tokenize", {"prompt": LARGE}),
    ],
    ids=["completion", "echo", "chat", "tokenize"],
)
async def test_a_large_prompt_is_tokenised_off_the_event_loop(monkeypatch, path, body):
    """While it is being encoded, which takes as long as it likes, the same server answers probes."""
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    encoding = TextModel._encoding

    def slow(self, encode, text, add_special_tokens):
        if len(text) >= len(LARGE):
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(30)
        return encoding(self, encode, text, add_special_tokens)

    monkeypatch.setattr(TextModel, "_encoding", slow)
    async with (
        listening(serve().app) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
        asyncio.timeout(30),
    ):
        asking = [asyncio.create_task(client.post(path, json={"model": "toy", **body})) for _ in range(3)]
        await begun.wait()
        for _ in range(20):
            assert (await client.get("/livez")).status_code == 200
        assert not any(each.done() for each in asking)
        go_on.set()
        answers = await asyncio.gather(*asking)
    if path == "/tokenize":
        assert all(answer.json()["count"] > MAX_MODEL_LEN for answer in answers)
    else:
        assert all(answer.json()["error"]["param"] in ("prompt", "messages") for answer in answers)

"""Clients that do not read: what is made for them ahead is bounded, and nobody waits with them."""

import asyncio
import json
import socket

import httpx

from tests.unit.scripted_engine import events, listening, serve

CHOICES, TOKENS = 128, 150
# 10 MB of events: the kernel takes some 3 MB for a client that does not read.
BODY = {"model": "toy", "prompt": [65], "n": CHOICES, "max_tokens": TOKENS, "logprobs": 20, "stream": True}


def request(body):
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def connected(port):
    """A connection for which the kernel keeps little."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    return sock


async def settled(read):
    """Return once `read()` gives the same twice, a while apart."""
    before = None
    async with asyncio.timeout(60):
        while before is None or before != read():
            before = read()
            await asyncio.sleep(0.3)


async def test_a_client_that_does_not_read_is_written_for_no_further_than_the_buffers():
    """Its events are made when it reads: until then only tokens wait, others are served, and in the end it gets all."""
    served = serve(lambda submit: [66] * submit.sampling.max_tokens, max_sequences=CHOICES + 1)
    made = 0

    async def counting(scope, receive, send):
        async def count(message):
            nonlocal made
            made += len(message.get("body", b""))
            await send(message)

        await served.app(scope, receive, count)

    async with listening(counting) as url, httpx.AsyncClient(base_url=url, timeout=30) as other:
        reader, writer = await asyncio.open_connection(sock=connected(int(url.rpartition(":")[2])))
        writer.write(request(BODY))
        await settled(lambda: made)
        made_unread = made
        answer = await other.post("/v1/completions", json={**BODY, "n": 1})
        assert len(events(answer.text)) == TOKENS + 1
        answer = await reader.read()
        writer.close()
    assert answer.count(b"data: {") == CHOICES * TOKENS
    assert b"data: [DONE]" in answer
    assert made_unread < made / 2

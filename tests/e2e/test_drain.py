"""SIGTERM as HTTP clients see it: what runs is finished, what begins is refused, connections end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

from tests.coldstream import Server, alive, serving, wait_for

BODY = {"model": "m", "prompt": "Count:", "max_tokens": 800, "ignore_eos": True}


class KeptConnection:
    """One connection, used as often as the server lets it be."""

    def __init__(self, server: Server):
        self._http = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
        self._http.connect()
        self._socket = self._http.sock.dup()  # http.client closes its own when it is told to

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._socket.close()

    def ask(self, method: str, path: str, body: dict[str, object] | None = None) -> Answer:
        """Send a request and read the answer."""
        data = None if body is None else json.dumps(body)
        self._http.request(method, path, data, {"content-type": "application/json"})
        response = self._http.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())

    def is_closed_by_server(self) -> bool:
        """Whether its end follows; waits for it."""
        return self._socket.recv(1) == b""


class Answer(NamedTuple):
    """Status, headers by their small names, and body."""

    status: int
    headers: dict[str, str]
    body: bytes


@contextlib.contextmanager
def two_answers(
    server: Server, pool: ThreadPoolExecutor, body: dict[str, Any]
) -> Iterator[tuple[Iterator[str], KeptConnection, Future[Answer]]]:
    """A stream's lines, of which one has come, and a connection with the whole answer that it waits for; the engine runs both."""
    with (
        KeptConnection(server) as busy,
        server.client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        answering = pool.submit(busy.ask, "POST", "/v1/completions", body)
        wait_for(lambda: "coldstream_requests_running 2.0" in server.client.get("/metrics").text)
        yield lines, busy, answering


def test_a_drain_on_connections_that_were_kept(tiny_model, tmp_path):
    """Of two idle ones a request and a probe get their 503, of a busy one the whole answer, and each ends with it."""
    with (
        serving(str(tiny_model.folder), "--drain-timeout", "150", log_path=tmp_path / "log") as server,
        ThreadPoolExecutor() as pool,
    ):
        server.wait_ready()
        engine = server.child("app.engine")
        with two_answers(server, pool, BODY) as (lines, busy, answering):
            engine.suspend()  # both last, however fast the machine is
            with KeptConnection(server) as asking, KeptConnection(server) as probing:
                for connection in (asking, probing):
                    assert connection.ask("GET", "/health").status == 200
                os.kill(server.pid, signal.SIGTERM)
                wait_for(lambda: server.health()[0] == 503)
                probed = probing.ask("GET", "/health")
                refused = asking.ask("POST", "/v1/completions", BODY)
                assert asking.is_closed_by_server()
                assert probing.is_closed_by_server()
            engine.resume()
            rest = [line for line in lines if line]
            answer = answering.result()
            assert busy.is_closed_by_server()
        check_ended(server)
    assert json.loads(probed.body)["state"] == "draining"
    assert refused.status == 503
    assert all(int(each.headers["retry-after"]) >= 1 for each in (probed, refused))
    assert {each.headers["connection"] for each in (probed, refused, answer)} == {"close"}
    assert rest[-1] == "data: [DONE]"
    assert answer.status == 200
    assert json.loads(answer.body)["usage"]["completion_tokens"] == BODY["max_tokens"]


def check_ended(server: Server) -> None:
    """With 0, and nothing went wrong on the way."""
    _, status = os.waitpid(server.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "Traceback" not in server.log()


def test_a_drain_that_takes_too_long_ends_what_is_left(tiny_model, tmp_path):
    """After --drain-timeout a stream gets an error event and no [DONE], a whole answer a status of its own; both say why."""
    with (
        serving(str(tiny_model.folder), "--drain-timeout", "0.5", log_path=tmp_path / "log") as server,
        ThreadPoolExecutor() as pool,
    ):
        server.wait_ready()
        with two_answers(server, pool, BODY | {"max_tokens": 8000}) as (lines, busy, answering):
            os.kill(server.pid, signal.SIGTERM)
            rest = [line for line in lines if line]
            answer = answering.result()
            assert busy.is_closed_by_server()
        check_ended(server)
    assert "shutting down" in rest[-1]
    assert "data: [DONE]" not in rest
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert "shutting down" in json.loads(answer.body)["error"]["message"]


def test_a_second_signal_ends_it_at_once(tiny_model, tmp_path):
    """Also as PID 1 of a container, whose signals have no default action: it is not the default that ends it."""
    with serving(str(tiny_model.folder), "--drain-timeout", "60", log_path=tmp_path / "log") as server:
        server.wait_ready()
        body = {"model": "m", "prompt": "Count:", "max_tokens": 8000, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()  # one that nobody holds closes the connection
            next(lines)
            family = server.family()
            os.kill(server.pid, signal.SIGTERM)
            wait_for(lambda: server.state() == "draining")
            os.kill(server.pid, signal.SIGTERM)
            _, status = os.waitpid(server.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
        wait_for(lambda: not any(alive(child) for child in family), 2)

"""Who hangs is replaced, and who cannot be saved says why: probes, log, exit code, termination message."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.coldstream import ROOT, alive, serving, wait_for
from tests.e2e.valve import Valve
from tests.unit.test_metrics import samples
from tools.blob_server import BlobServer


@pytest.fixture
def termination_log(tmp_path):
    """What a kubelet would have put there."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


def exit_code(pid: int) -> int:
    """Of a server that ends by itself."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def stop(process) -> None:
    """Freeze it: to everybody else it hangs."""
    os.kill(process.pid, signal.SIGSTOP)


def test_an_engine_that_hangs_in_a_step_is_replaced(tiny_model, tmp_path):
    """Its stream ends with an error, /health says so meanwhile, and the next request is answered as before."""
    flags = ("--step-timeout", "2")
    with serving(str(tiny_model.folder), *flags, log_path=tmp_path / "log") as server:
        server.wait_ready()
        prompt, engine = tiny_model.prompt_token_ids, server.child("app.engine")
        before = server.complete(prompt, max_tokens=4)["choices"]
        body = {"model": "m", "prompt": prompt, "max_tokens": 4000, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            stop(engine)
            rest = [line for line in lines if line]
        assert "the engine hung: no step ended for 2 s" in rest[-1]
        assert "data: [DONE]" not in rest
        status, health = server.health()
        assert (status, health["state"]) == (503, "warming")
        assert "another one binds to the same weights" in health["detail"]
        assert server.client.get("/livez").status_code == 200
        server.wait_ready()
        assert server.complete(prompt, max_tokens=4)["choices"] == before


def test_a_loader_that_waits_for_its_turn_does_not_hang(tiny_model, tmp_path):
    """A fleet's jitter may be longer than the stall timeout: nobody is killed for it, and probes see a load that goes on."""
    flags = ("--start-jitter", "3600", "--stall-timeout", "2")
    with serving(str(tiny_model.folder), *flags, log_path=tmp_path / "log") as server:
        server.reach("loading")
        loader = server.child("streaming")
        time.sleep(4)  # shorter waits are one in a thousand
        assert alive(loader)
        assert server.state() == "loading"
        assert server.client.get("/livez").status_code == 200
        assert samples(server.client.get("/metrics").text)["coldstream_process_restarts_total"]["process=loader"] == 0
        loader.kill()  # another one does not wait
        server.wait_ready()


def test_an_idle_engine_may_be_silent(tiny_model, tmp_path):
    """Nothing is owed, so nothing is missed, however short the timeout."""
    with serving(str(tiny_model.folder), "--step-timeout", "1", log_path=tmp_path / "log") as server:
        server.wait_ready()
        with pytest.raises(AssertionError, match="in time"):
            wait_for(lambda: "hung" in server.log(), timeout_s=3)


def test_an_engine_that_never_becomes_ready_is_replaced(tiny_model, tmp_path):
    """Weights that have landed in vain are an outage that somebody must notice."""
    flags = ("--engine-start-timeout", "2")
    with serving(str(tiny_model.folder), *flags, log_path=tmp_path / "log") as server:
        stop(server.child("app.engine"))
        wait_for(lambda: "app.engine hung" in server.log())
        # Where two seconds do not suffice for an import of torch, another one would be replaced as well.
        wait_for(lambda: "starting another one" in server.log())


def test_a_load_that_stalls_goes_on_over_new_connections(small_model, tmp_path):
    """Another loader fetches what has not landed; the server becomes ready with the right weights."""
    valve = Valve(passes=4)
    flags = ("--stall-timeout", "2", "--chunk-mib", "1")
    with (
        BlobServer(small_model.folder, hook=valve) as source,
        serving(source.url, *flags, log_path=tmp_path / "log") as server,
    ):
        wait_for(lambda: "streaming stalled: nothing landed for 2 s" in server.log())
        valve.opened.set()
        server.wait_ready()
        answer = server.complete(small_model.prompt_token_ids, max_tokens=1)
        assert answer["choices"][0]["text"] == small_model.continuation()


def test_a_load_that_stalls_again_has_failed(small_model, tmp_path, termination_log):
    """Exit 3, with what to do in the log, on /health while it lingers, and as the container's termination message."""
    valve = Valve()
    flags = ("--stall-timeout", "1", "--fail-linger", "2", "--termination-log", str(termination_log))
    with (
        BlobServer(small_model.folder, hook=valve) as source,
        serving(source.url, *flags, log_path=tmp_path / "log") as server,
    ):
        wait_for(lambda: server.log() and "SourceStalled" in server.log())
        status, health = server.health()
        assert (status, health["state"]) == (503, "failed")
        assert server.client.get("/livez").status_code == 503
        assert exit_code(server.pid) == 3
        valve.opened.set()
        reason = termination_log.read_text()
    assert "nothing landed for 1 s, also over new connections" in reason
    assert health["detail"] in reason
    assert f"exit 3: {reason}" in server.log().splitlines()[-1]


def test_an_engine_that_dies_again_and_again_is_given_up(tiny_model, tmp_path, termination_log):
    """Three restarts, ever later; then exit 6 and the reason."""
    flags = ("--termination-log", str(termination_log))
    with serving(str(tiny_model.folder), *flags, log_path=tmp_path / "log") as server:
        for deaths in range(1, 5):
            server.child("app.engine").kill()
            wait_for(lambda n=deaths: n == 4 or server.log().count("app.engine died") == n)
        assert exit_code(server.pid) == 6
    assert "app.engine died 4 times within ten minutes" in termination_log.read_text()


def test_a_server_that_cannot_answer_says_so(tiny_model, tmp_path, termination_log):
    """Whatever cannot be imported ends it: exit 6, with the reason where every other reason is."""
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('a broken installation')")
    flags = ("--termination-log", str(termination_log))
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with serving(str(tiny_model.folder), *flags, log_path=tmp_path / "log", environ=environ) as server:
        family = wait_for(server.family)
        assert exit_code(server.pid) == 6
        wait_for(lambda: not any(alive(child) for child in family), 2)
    assert "a broken installation" in termination_log.read_text()
    assert "exit 6: the HTTP server has ended: ImportError" in server.log().splitlines()[-1]

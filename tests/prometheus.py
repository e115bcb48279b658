"""A real Prometheus that scrapes a server of a test, and its promtool."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.coldstream import wait_for
from tools.child import running
from tools.debian_packages import ensure_program
from tools.ports import free_port


@contextlib.contextmanager
def prometheus(target: str, folder: Path) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes `target` twice a second; a client of its API."""
    config = folder / "prometheus.yml"
    config.write_text(
        "scrape_configs:\n"
        "  - job_name: coldstream\n    scrape_interval: 500ms\n    scrape_timeout: 500ms\n"
        f"    static_configs:\n      - targets: ['{target}']\n"
    )
    port = free_port()
    command = [str(ensure_program("promtool", "prometheus").with_name("prometheus")), f"--config.file={config}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    command += ["--enable-feature=exemplar-storage"]
    with (
        running(command, log_path=folder / "prometheus.log"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
    ):
        wait_for(lambda: _is_ready(client))
        yield client


def asked(client: httpx.Client, path: str, **parameters: object) -> list[dict[str, Any]]:
    """The result of a query."""
    answer = client.get(f"/api/v1/{path}", params={name: str(value) for name, value in parameters.items()})
    assert answer.status_code == 200, answer.text
    result: list[dict[str, Any]] = answer.json()["data"]["result"]
    return result


def lint(exposition: bytes) -> str:
    """What promtool has against a scrape; nothing if all is well."""
    command = [ensure_program("promtool", "prometheus"), "check", "metrics"]
    done = subprocess.run(command, input=exposition, capture_output=True, check=False)
    return done.stderr.decode() + ("" if done.returncode == 0 else f"exit {done.returncode}")


def unparsable(expressions: Iterable[str], folder: Path) -> str:
    """What promtool has against expressions; nothing if all of them are PromQL."""
    rules = [{"record": f"test:{number}", "expr": text} for number, text in enumerate(expressions)]
    path = folder / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "test", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run(
        [ensure_program("promtool", "prometheus"), "check", "rules", path], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stderr + done.stdout


def _is_ready(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/-/ready").status_code == 200
    return False

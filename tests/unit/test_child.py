"""Children of the tools end with whoever started them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tools.child import last_line, running

_ROOT = Path(__file__).resolve().parents[2]


def wait_until_gone(pid: int) -> None:
    """Return once no such process runs any more."""
    deadline_s = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s, f"{pid} is still running"
        time.sleep(0.01)


def test_leaving_the_block_ends_the_child_and_its_children(tmp_path: Path) -> None:
    """Also a grandchild is gone, and the child's output is in its log."""
    log_path = tmp_path / "log"
    with running(["sh", "-c", "sleep 60 & echo $!; wait"], log_path=log_path) as process:
        while not log_path.read_text().endswith("\n"):
            time.sleep(0.01)
        grandchild_pid = int(last_line(log_path))
        assert psutil.pid_exists(grandchild_pid)

    assert process.returncode == -signal.SIGKILL
    wait_until_gone(grandchild_pid)


def test_a_child_has_its_grace_to_end_in_order(tmp_path: Path) -> None:
    """With a grace period the child gets SIGTERM first and its own exit code."""
    script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    with running(["sh", "-c", script], log_path=tmp_path / "log", grace_s=5) as process:
        while "ready" not in (tmp_path / "log").read_text():
            time.sleep(0.01)

    assert process.returncode == 3


def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """SIGKILL of the parent, which can run no handler, leaves no child."""
    script = (
        "import pathlib, sys, time\nfrom tools.child import running\n"
        f"with running(['sleep', '60'], log_path=pathlib.Path({str(tmp_path / 'log')!r})) as process:\n"
        "    print(process.pid, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=_ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        parent.kill()

    wait_until_gone(child_pid)


@pytest.mark.parametrize(("output", "line"), [("one\ntwo\n\n", "two"), ("", "it said nothing")])
def test_the_last_line_is_what_it_said_before_it_failed(tmp_path: Path, output: str, line: str) -> None:
    """Empty lines at the end are passed over."""
    (tmp_path / "log").write_text(output)

    assert last_line(tmp_path / "log") == line

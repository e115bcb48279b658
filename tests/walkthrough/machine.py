"""A machine to run a walkthrough on: bash, stand-ins first on PATH, and a world that outlives each run.

Takes a folder and scripts, gives exit codes, outputs and the calls that were made. A stand-in is a few lines of bash that
ask this process what to say: hundreds of calls take seconds.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tests.coldstream import ROOT
from tests.walkthrough.azure import az
from tests.walkthrough.client import curl, git, sleep
from tests.walkthrough.cluster import forward_ended, kubectl
from tests.walkthrough.world import Call, Refused, World
from tools.debian_packages import ensure_program

_PROGRAMS = {"az": az, "kubectl": kubectl, "curl": curl, "git": git, "sleep": sleep}
# The answer is the exit code, a line for stderr, and stdout; it comes late where the program goes on running.
_STAND_IN = """\
#!/bin/bash
given=
case " $* " in *' - '*) given={folder}/stdin.$$; cat >"$given" ;; esac
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\\0' {name} "$given" "$#" "$@" >&3
IFS= read -r code <&3
IFS= read -r line <&3
case " $* " in *' --dry-run=client '*) shift 2; exec {kubectl} "$@" ;; esac
if [ -n "$line" ]; then echo "$line" >&2; fi
IFS= read -r -d '' said <&3
printf %s "$said"
exit "$code"
"""


class Run(NamedTuple):
    """What came of a script: bash's exit code, both outputs, and the calls in order."""

    code: int
    output: str
    errors: str
    calls: list[Call]

    def index(self, program: str, *parts: str, after: int = -1) -> int:
        """Where the first call of a program that has all these parts is, behind another call."""
        for number, call in enumerate(self.calls):
            if number > after and call.has(program, *parts):
                return number
        raise AssertionError(f"no call of {program} with {parts} behind {after}")


class Machine:
    """Runs scripts, one after another; what they call, the world answers."""

    def __init__(self, folder: Path, world: World):
        self.folder = folder
        self.world = world
        self.calls: list[Call] = []
        self.lock = threading.Condition()
        # Which call shall fail, whatever it is: its place in a run, from 0.
        self.failing = -1

    def run(self, script: str, **variables: str) -> Run:
        """Run a script in bash as a session is: nothing ends it at a failure but its own words."""
        self.calls.clear()
        path = self.folder / "script"
        path.write_text(script)
        done = subprocess.run(
            ["bash", str(path)],
            cwd=ROOT,
            env={"HOME": str(self.folder), "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        with self.lock:
            self._wait_for_forwards()
            return Run(done.returncode, done.stdout, done.stderr, [*self.calls])

    def answer(self, connection: socket.socket) -> None:
        """Be the program that a stand-in asks for."""
        with connection, connection.makefile("rb") as asked:
            name, given, count = (_word(asked) for _ in range(3))
            if not count:
                return  # it was killed before it had asked
            argv = [_word(asked) for _ in range(int(count))]
            call = Call(name, argv, Path(given).read_text() if given else "")
            with self.lock:
                self.calls.append(call)
                code, line, said = self._say(call)
            if name == "kubectl" and "port-forward" in argv and not code:
                asked.read()  # until it is killed
                with self.lock:
                    forward_ended(self.world, said)
                    self.lock.notify_all()
                return
            connection.sendall(
                f"{code}\n{line}\n{said}{'' if said.endswith(chr(10)) or not said else chr(10)}".encode()
            )

    def _say(self, call: Call) -> tuple[int, str, str]:
        if len(self.calls) - 1 == self.failing:
            return 1, f"{call.program} fails", ""
        if "port-forward" in call.argv:
            self._wait_for_forwards()
        try:
            return 0, "", _PROGRAMS[call.program](self.world, call)
        except Refused as refusal:
            return refusal.code, str(refusal).replace("\n", " "), ""

    def _wait_for_forwards(self) -> None:
        """One that was killed is gone a moment later; one that was not stays."""
        self.lock.wait_for(lambda: not any(name.startswith("forward/") for name in self.world.resources), 5)


def _word(asked: BinaryIO) -> str:
    found = bytearray()
    while (byte := asked.read(1)) not in (b"\0", b""):
        found += byte
    return found.decode()


@contextlib.contextmanager
def machine(folder: Path, world: World) -> Iterator[Machine]:
    """A machine with its programs in `folder`, for the length of a `with` block."""
    made = Machine(folder, world)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _install(folder, listener.getsockname()[1])
        server = threading.Thread(target=_serve, args=(listener, made))
        server.start()
        try:
            yield made
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            server.join()


def _serve(listener: socket.socket, made: Machine) -> None:
    answering = []
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            answering.append(threading.Thread(target=made.answer, args=(connection,)))
            answering[-1].start()
    for each in answering:
        each.join()


def _install(folder: Path, port: int) -> None:
    programs = folder / "bin"
    programs.mkdir(parents=True)
    real = Path(sys.executable).with_name("kubectl")
    for name in _PROGRAMS:
        program = programs / name
        program.write_text(_STAND_IN.format(folder=folder, port=port, name=name, kubectl=real))
        program.chmod(0o755)
    (programs / "envsubst").symlink_to(ensure_program("envsubst", "gettext-base"))

"""Stand-ins for what talks to the server and for the small rest: `curl`, `git`, and a `sleep` that takes no time.

Takes a command line, gives what the command prints. The server behind a forwarded port refuses connections, then says
503, then is ready; a question before that is refused.
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from tests.walkthrough.workload import SERVER, settings
from tests.walkthrough.world import Call, Refused, World, usage

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_WITH_VALUE = {"--data", "--header", "--output"}
_SWITCHES = {"--fail", "--no-buffer", "--show-error", "--silent"}


def curl(world: World, call: Call) -> str:
    """Ask the server; what it answers.

    Raises:
        Refused: 7 where nobody listens, 22 where the answer is an error and --fail was given.
    """
    url, flags = _split(call.argv)
    target = urlsplit(url)
    if f"forward/{target.port}" not in world.resources:
        raise Refused(7, f"curl: (7) Failed to connect to 127.0.0.1 port {target.port}")
    if target.path == "/health":
        if not world.comes_to_pass("health", str(target.port)):
            raise Refused(22, "curl: (22) The requested URL returned error: 503")
        return ""
    if not world.has_come_to_pass("health", str(target.port)) or "--fail" not in flags:
        raise Refused(22, f"curl: (22) {target.path} before the server was ready, or no --fail")
    return _answer(world, target.path, flags)


def _answer(world: World, path: str, flags: dict[str, str]) -> str:
    if path == "/startupz":
        return json.dumps({"phases": [], "milestones": {}, "now_s": 1.0})
    body = json.loads(flags["--data"])
    served = settings(world, world.objects[SERVER]["spec"]["template"])["COLDSTREAM_MODEL"].rpartition("/")[2]
    if path != "/v1/chat/completions" or body["model"] != served or not body["stream"]:
        raise Refused(22, f"curl: (22) {path} for {body['model']!r}, but {served!r} is served")
    return 'data: {"choices": [{"delta": {"content": "Because"}}]}\n\ndata: [DONE]\n'


def _split(words: list[str]) -> tuple[str, dict[str, str]]:
    flags: dict[str, str] = {}
    urls = []
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            flags[word] = next(rest) if word in _WITH_VALUE else ""
        else:
            urls.append(word)
    if len(urls) != 1 or flags.keys() - _WITH_VALUE - _SWITCHES:
        usage("curl", f"{urls} {flags}")
    return urls[0], flags


def git(world: World, call: Call) -> str:
    """The commit, and its abbreviation; nothing else is asked for."""
    said = {"rev-parse HEAD": COMMIT, "rev-parse --short=12 HEAD": COMMIT[:12]}
    if (asked := " ".join(call.argv)) not in said:
        usage("git", asked)
    return said[asked]


def sleep(world: World, call: Call) -> str:
    """Done at once."""
    return ""

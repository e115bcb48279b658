"""`push` from a hub that says no, or under a name that is none: one line, and no secret in any."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.test_refusals import check
from tests.forked_command import coldstream
from tests.hub import SIGNATURE, Hub
from tests.integration.push_hub.pushes import REPO, SHARDS, TOKEN, Once, check_whole, pushed, uri_of
from tools.blob_server import Fault
from tools.ports import free_port


def gated(running: Hub) -> None:
    running.repositories[REPO].token = "hf_another"


REFUSALS: dict[str, tuple[list[str], Callable[[Hub], object], dict[str, str], int, tuple[str, ...]]] = {
    "gated": ([REPO], gated, {}, 3, ("gated", "accept its licence", "HF_TOKEN")),
    "not there": (["org/nothing"], lambda _: None, {}, 3, ("org/nothing", "no such repository", "HF_TOKEN")),
    "no revision": (["--revision", "v9", REPO], lambda _: None, {}, 3, (REPO, "no such branch, tag or commit")),
    "401": ([REPO], lambda h: h.answers.update(info=(401, {})), {}, 3, ("access denied (401)", "HF_TOKEN")),
    "403": ([REPO], lambda h: h.answers.update(file=(403, {})), {}, 3, ("access denied (403)", "HF_TOKEN")),
    "404": ([REPO], lambda h: h.answers.update(file=(404, {})), {}, 3, ("answered 404",)),
    "nobody": ([REPO], lambda _: None, {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}, 3, ("refused", REPO)),
    "a password": (
        [REPO],
        lambda _: None,
        {"HF_ENDPOINT": f"http://user:{TOKEN}@127.0.0.1:{free_port()}"},
        3,
        ("refused", "http://127.0.0.1:"),
    ),
    "no name": ([REPO], lambda _: None, {"HF_ENDPOINT": "http://hub.invalid"}, 3, ("http://hub.invalid", REPO)),
    "no URL": ([REPO], lambda _: None, {"HF_ENDPOINT": "nonsense"}, 3, ("HF_ENDPOINT",)),
    "not a hub": ([REPO], lambda h: h.answers.update(info=(200, {})), {}, 3, ("hub",)),
    "offline": ([REPO], lambda _: None, {"HF_HUB_OFFLINE": "1"}, 3, ("HF_HUB_OFFLINE",)),
    "bad token": ([REPO], lambda _: None, {"HF_TOKEN": f"{TOKEN}\x01é"}, 3, ("HF_TOKEN",)),
    "datasets": (["hf://datasets/org/name"], lambda _: None, {}, 3, ("hf://org/name@revision",)),
    "two revisions": ([f"hf://{REPO}@a", "--revision", "b"], lambda _: None, {}, 3, ("keep one",)),
    "two dashes": (["org/na--me"], lambda _: None, {}, 3, ("org/na--me",)),
    "no folder": (["nowhere"], lambda _: None, {}, 4, ("nowhere", "no such folder", "hf://")),
    "a folder's revision": (["/tmp", "--revision", "v1"], lambda _: None, {}, 3, ("--revision",)),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_pushed_is_one_line(served, commit, container, environ, case):
    """Gated, missing, unreachable or mistyped: an exit code, what to do, no traceback, no secret."""
    words, prepare, variables, exit_code, parts = REFUSALS[case]
    prepare(served)
    flags = ("--max-retries", "1", "--log-level", "debug")
    done = coldstream("push", *words, uri_of(container), *flags, environ={**environ, **variables})
    check(done, exit_code, *parts)
    assert not any(secret in done.stdout + done.stderr for secret in (TOKEN, SIGNATURE))


def test_a_gated_repository_takes_the_token(served, commit, container, environ, checkpoint):
    """HF_TOKEN opens what is gated."""
    served.repositories[REPO].token = TOKEN
    pushed(container, environ)
    check_whole(container, checkpoint)


@pytest.mark.parametrize("fault", [None, Fault(status=403, body=b"<Error/>"), Fault(cut_after_bytes=0)])
def test_no_output_has_a_secret(served, commit, container, environ, faults, fault):
    """Neither the token nor a signed URL, in logs at their most talkative, also with HF_DEBUG, nor in what fails."""
    served.repositories[REPO].token = TOKEN
    if fault:
        faults.play = Once(SHARDS[0], fault, times=99)
    talkative = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    words = ("push", REPO, uri_of(container), "--log-level", "debug", "--max-retries", "1")
    done = coldstream(*words, environ={**environ, **talkative})
    assert done.returncode == (3 if fault else 0), done.stderr
    assert served.cdn.requests
    said = done.stdout + done.stderr
    assert f"hf://{REPO} is at commit {commit}" in said
    assert not any(secret in said for secret in (TOKEN, SIGNATURE, "Signature="))

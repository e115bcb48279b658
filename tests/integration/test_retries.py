"""Reads that fail are tried again, each by itself: by cause, as often as allowed, and no secret is told."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import run
from app.settings import parse
from streaming import retry_policy
from streaming.causes import Cause
from streaming.counters import FetchCounters
from streaming.describe import describe
from streaming.errors import AccessDenied, BlobChanged, BlobNotFound, RangesIgnored, SourceError, SourceUnavailable
from streaming.messages import BlobVersion
from streaming.options import AzureOptions, SourceOptions
from streaming.retry_policy import FREE_RETRIES
from streaming.retrying import Retries, RetryingRanges, RetryingSource
from streaming.source import open_source
from tests.checkpoints import SMALL, random_shards, raw, write_manifest
from tests.loader import load
from tools.blob_server import BlobRequest, BlobServer, Fault

CONTENT = os.urandom(200_000)
RANGE = (1_000, 101_000)
QUICK = SourceOptions(read_timeout_s=0.5, connect_timeout_s=1, max_retries=3, retry_timeout_s=20)
REQUEST_ID = "5d3a1b2c-901e-0012-3f4a-778899000000"
BUSY = (
    '<?xml version="1.0" encoding="utf-8"?><Error><Code>{}</Code><Message>No.\n'
    f"RequestId:{REQUEST_ID}\nTime:2026-01-01T00:00:00Z</Message></Error>"
)

MENDED = {
    Cause.REQUEST_TIMEOUT: Fault(status=408),
    Cause.TOO_MANY: Fault(status=429, headers={"Retry-After": "1"}),
    Cause.INTERNAL: Fault(status=500),
    Cause.BAD_GATEWAY: Fault(status=502),
    Cause.UNAVAILABLE: Fault(status=503, body=BUSY.format("ServerBusy").encode()),
    Cause.GATEWAY_TIMEOUT: Fault(status=504),
    Cause.TRUNCATED: Fault(cut_after_bytes=5_000),
    Cause.RESET: Fault(cut_after_bytes=0),
    Cause.WRONG_RANGE: Fault(headers={"Content-Range": "bytes 0-99999/200000"}),
    Cause.TIMEOUT: Fault(cut_after_bytes=0, stalls_s=1.5),
}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short where they are slept in this process."""
    monkeypatch.setattr(retry_policy, "LONGEST_WAIT_S", 0.05)


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """A folder with one blob."""
    (tmp_path / "blob").write_bytes(CONTENT)
    return tmp_path


def first(times: int, fault: Fault) -> Callable[[BlobRequest], Fault | None]:
    """Plays the fault for the first requests, whatever they ask for."""
    left = iter([fault] * times)
    return lambda request: next(left, None)


def read(
    server: BlobServer,
    options: SourceOptions = QUICK,
    counters: FetchCounters | None = None,
    span: tuple[int, int] = RANGE,
) -> bytes:
    """One range of the blob, by our own policy."""
    reader = RetryingRanges(open_source(server.url, options), Retries(options, counters or FetchCounters()))
    version = BlobVersion("blob", len(CONTENT), server.etag_of(server.folder / "blob"))
    return bytes(asyncio.run(reader.read_range(version, *span)))


@pytest.mark.parametrize("cause", MENDED)
def test_a_cause_that_may_pass_is_tried_again_and_counted(blob: Path, cause: Cause) -> None:
    """Two bad answers, then the bytes: three requests of the same range at the server, two retries by that cause."""
    counters = FetchCounters()
    with BlobServer(blob, hook=first(2, MENDED[cause])) as server:
        data = read(server, counters=counters)

    assert data == CONTENT[slice(*RANGE)]
    assert counters.retries == {cause: 2}
    assert len(server.requests) == 3
    assert {request.end - request.start for request in server.requests} <= {0, RANGE[1] - RANGE[0]}


@pytest.mark.parametrize("cut_after_bytes", [0, 5_000])
def test_a_reset_is_told_from_an_end(blob: Path, cut_after_bytes: int) -> None:
    """Before the answer and in the middle of it."""
    counters = FetchCounters()
    with BlobServer(blob, hook=first(1, Fault(cut_after_bytes=cut_after_bytes, resets=True))) as server:
        read(server, counters=counters)
    assert counters.retries == {Cause.RESET: 1}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(status=400), SourceUnavailable),
        (Fault(status=403, body=BUSY.format("AuthorizationPermissionMismatch").encode()), AccessDenied),
        (Fault(status=404), BlobNotFound),
        (Fault(status=409), SourceUnavailable),
        (Fault(status=412), BlobChanged),
        (Fault(status=416), BlobChanged),
        (Fault(ignores_range=True), RangesIgnored),
    ],
)
def test_what_another_read_cannot_mend_is_not_tried_again(blob: Path, fault: Fault, kind: type[SourceError]) -> None:
    """One request, and its error at once."""
    counters = FetchCounters()
    with BlobServer(blob, hook=lambda request: fault) as server, pytest.raises(kind) as caught:
        read(server, counters=counters)
    assert type(caught.value) is kind
    assert counters.retries == {}
    assert len(server.requests) == 1


def test_nobody_listening_and_a_name_that_nobody_knows_are_tried_again() -> None:
    """Refused connections and names that are not resolved, each by its cause."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url, cause in ((f"http://127.0.0.1:{port}", Cause.REFUSED), ("http://nobody.invalid", Cause.DNS)):
        counters = FetchCounters()
        source = RetryingSource(open_source(url, QUICK), Retries(QUICK, counters))
        with pytest.raises(SourceUnavailable, match=f"4 attempts in .* the last: {cause}"):
            source.read("config.json")
        assert counters.retries == {cause: QUICK.max_retries}


def test_the_last_error_says_all_that_is_known(blob: Path) -> None:
    """Blob, range, status, attempts, cause and the service's id of the request, on one line."""
    with (
        BlobServer(blob, hook=lambda request: MENDED[Cause.UNAVAILABLE]) as server,
        pytest.raises(SourceUnavailable) as caught,
    ):
        read(server)
    message = str(caught.value)
    for part in ("/blob [1000, 101000)", "503", REQUEST_ID, "(4 attempts in ", "the last: 503"):
        assert part in message
    assert "\n" not in message
    assert (caught.value.cause, caught.value.status, caught.value.request_id) == (Cause.UNAVAILABLE, 503, REQUEST_ID)
    assert len(server.requests) == 1 + QUICK.max_retries


def test_a_signature_is_in_no_word_of_the_last_error(blob: Path) -> None:
    """A SAS token travels in the URL, which obstore quotes in every error."""
    (blob / "account" / "models").mkdir(parents=True)
    (blob / "account" / "models" / "blob").write_bytes(CONTENT)
    secret = "c2VjcmV0LXNlY3JldA%3D%3D"
    counters = FetchCounters()
    with BlobServer(blob, hook=lambda request: MENDED[Cause.UNAVAILABLE]) as server:
        azure = AzureOptions(
            account_name="account",
            endpoint=f"{server.url}/account",
            sas_token=f"sv=2021-08-06&sp=r&sig={secret}",
        )
        options = SourceOptions(azure=azure, max_retries=2)
        source = RetryingSource(open_source("az://models", options), Retries(options, counters))
        with pytest.raises(SourceUnavailable) as caught:
            source.read("blob")
    assert len(server.requests) == 3
    assert "3 attempts" in str(caught.value)
    assert "sig=" not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


@pytest.mark.parametrize(("identity", "attempts"), [(True, 3), (False, 1)])
def test_a_role_may_take_a_while_to_spread(blob: Path, monkeypatch, identity: bool, attempts: int) -> None:
    """An identity's refusal for want of a role is tried again in the first seconds of a load; a signature's is not."""
    (blob / "account" / "models").mkdir(parents=True)
    (blob / "account" / "models" / "blob").write_bytes(CONTENT)
    refusal = Fault(status=403, body=BUSY.format("AuthorizationPermissionMismatch").encode())
    named = ("workload-identity", AzureOptions()) if identity else None
    monkeypatch.setattr("streaming.credentials.identity_of", lambda azure: named)
    with BlobServer(blob, hook=first(2, refusal)) as server:
        azure = AzureOptions(account_name="account", endpoint=f"{server.url}/account", account_key="c2VjcmV0")
        options = SourceOptions(azure=azure, max_retries=3)
        source = RetryingSource(open_source("az://models", options), Retries(options, FetchCounters()))
        if identity:
            assert bytes(source.read("blob")) == CONTENT
        else:
            with pytest.raises(AccessDenied):
                source.read("blob")
    assert len(server.requests) == attempts


def test_the_budget_stops_a_storm(blob: Path) -> None:
    """Of a source that fails every request, many lanes ask no more often than once each, what is free, and a turn a second.

    And none is given up while it waits for its turn.
    """
    lanes, options = 60, SourceOptions(max_retries=50, retry_timeout_s=2)
    counters = FetchCounters()

    async def read_all(server: BlobServer) -> None:
        reader = RetryingRanges(open_source(server.url, options), Retries(options, counters))
        version = BlobVersion("blob", len(CONTENT), server.etag_of(blob / "blob"))
        reads = [asyncio.ensure_future(reader.read_range(version, start, start + 1000)) for start in range(lanes)]
        given_up, waiting = await asyncio.wait(reads, timeout=2 * options.retry_timeout_s)
        for read in waiting:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        assert not given_up

    start_s = time.monotonic()
    with BlobServer(blob, hook=lambda request: Fault(status=500)) as server:
        asyncio.run(read_all(server))
    turns = time.monotonic() - start_s + 1
    retries = len(server.requests) - lanes
    assert FREE_RETRIES <= retries <= FREE_RETRIES + turns
    assert retries <= sum(counters.retries.values()) <= retries + lanes  # each has one that is granted and not yet made


def test_no_retry_begins_after_the_deadline(blob: Path) -> None:
    """However many retries are allowed; an attempt that has begun may end."""
    options = SourceOptions(read_timeout_s=0.4, max_retries=1000, retry_timeout_s=2)
    start_s = time.monotonic()
    with BlobServer(blob, hook=lambda request: Fault(cut_after_bytes=0, stalls_s=1)) as server:
        with pytest.raises(SourceError):
            read(server, options)
        elapsed_s = time.monotonic() - start_s
    assert 2 <= len(server.requests) <= 6
    assert elapsed_s < 10


def test_a_connection_without_a_byte_is_given_up_in_the_middle_of_an_answer(blob: Path) -> None:
    """Long before the request's own time is up."""
    counters, options = FetchCounters(), SourceOptions(read_timeout_s=0.5, request_timeout_s=60)
    start_s = time.monotonic()
    with BlobServer(blob, hook=first(1, Fault(cut_after_bytes=5_000, stalls_s=30))) as server:
        assert read(server, options, counters) == CONTENT[slice(*RANGE)]
    assert counters.retries == {Cause.TIMEOUT: 1}
    assert time.monotonic() - start_s < 15


def test_a_slow_answer_that_moves_is_not_given_up(blob: Path) -> None:
    """The time is for the next byte, not for the whole: the answer takes several times as long."""
    counters, options = FetchCounters(), SourceOptions(read_timeout_s=1.5)
    start_s = time.monotonic()
    with BlobServer(blob, bytes_per_s=65_536) as server:
        assert read(server, options, counters, (0, 200_000)) == CONTENT
    assert time.monotonic() - start_s > 1.5
    assert counters.retries == {}


def test_a_whole_load_survives_a_source_that_fails_one_read_in_five(folder: Path) -> None:
    """Bytes are right, only what failed was fetched again, and the report counts it by cause."""
    expected = random_shards(folder, megabytes=2)
    faults = itertools.cycle((Fault(status=503), Fault(cut_after_bytes=900), Fault(status=500)))
    played: list[Fault] = []
    reads, lock = itertools.count(), threading.Lock()

    def hook(request: BlobRequest) -> Fault | None:
        if request.end - request.start < 1_000:
            return None
        with lock:
            if next(reads) % 5 == 3:
                played.append(next(faults))
                return played[-1]
        return None

    with BlobServer(folder, hook=hook) as server:
        result = load(server.url, pipeline=SMALL, source=SourceOptions(max_retries=8))
    assert result.error is None
    assert result.report is not None
    assert all(result.tensor(name) == raw(tensor) for name, tensor in expected.items())
    assert result.report.counters.retries == {
        "500": sum(fault.status == 500 for fault in played),
        "503": sum(fault.status == 503 for fault in played),
        "truncated": sum(fault.status is None for fault in played),
    }
    assert len(played) >= 6
    assert result.plan is not None
    assert result.report.fetched_bytes == result.plan.fetch_bytes


def test_a_server_without_ranges_is_told_before_any_weight(folder: Path) -> None:
    """Each blob was asked for once at most, and the error says what to do."""
    random_shards(folder, megabytes=1)
    with BlobServer(folder, hook=lambda request: Fault(ignores_range=True)) as server:
        result = load(server.url, pipeline=SMALL)
        paths = [request.path for request in server.requests if request.status == 200]
    assert result.error is not None
    assert (result.error.kind, result.error.exit_code) == ("RangesIgnored", 3)
    assert "byte ranges" in result.error.message
    assert result.plan is None
    assert len(paths) == len(set(paths))


def test_a_load_that_fails_has_told_its_retries(folder: Path) -> None:
    """The counters cross before the error does."""
    random_shards(folder, megabytes=1)
    with BlobServer(folder, hook=lambda request: Fault(status=502) if request.start else None) as server:
        result = load(server.url, pipeline=SMALL, source=SourceOptions(max_retries=1))
    assert result.error is not None
    assert result.error.kind == "SourceUnavailable"
    assert result.counters.retries["502"] >= 1


def test_a_listing_that_nobody_needs_holds_nobody_up(folder: Path) -> None:
    """Who may not list describes a checkpoint with an index as fast as others: nothing is tried again for it."""
    random_shards(folder)
    (folder / "config.json").write_text("{}")
    source = open_source(str(folder), SourceOptions())
    counters = FetchCounters()
    retrying = RetryingSource(source, Retries(QUICK, counters))
    asked = []

    def refused() -> None:
        asked.append(1)
        raise SourceUnavailable("no listing", cause=Cause.UNAVAILABLE)

    source.list = refused  # type: ignore[method-assign, assignment]
    assert describe(retrying).entries
    assert (len(asked), counters.retries) == (1, {})
    with pytest.raises(SourceUnavailable):
        retrying.list()
    assert counters.retries == {Cause.UNAVAILABLE: QUICK.max_retries}


def test_verify_tries_again(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A container is compared to its end although every file's reads fail once."""
    monkeypatch.setattr(retry_policy, "TURN_S", 0.05)  # most of them wait for their turn
    random_shards(folder)
    write_manifest(folder, 64 << 10)
    seen = set()

    def once(request: BlobRequest) -> Fault | None:
        key = request.path, request.start
        return seen.add(key) or Fault(status=503) if key not in seen else None

    with BlobServer(folder, hook=once) as server:
        code = run(parse(["verify", server.url], {}), {})
    assert (code, "0 differ" in capsys.readouterr().out) == (0, True)

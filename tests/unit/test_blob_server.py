"""The blob server that tests read from, read with an ordinary HTTP client."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tools.blob_server import BlobRequest, BlobServer, Fault

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One blob."""
    (tmp_path / "served" / "llm").mkdir(parents=True)
    (tmp_path / "served" / "llm" / "blob").write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(b"outside")
    return tmp_path / "served"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=255990-999999", 255990, 256000),
        ("bytes=-7", 255993, 256000),
    ],
)
def test_a_range_is_answered_with_its_bytes(folder: Path, asked: str, start: int, end: int) -> None:
    """206, exactly the bytes, and a Content-Range that names them."""
    with BlobServer(folder) as server:
        answer = httpx.get(f"{server.url}/llm/blob", headers={"range": asked})

    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/256000"
    assert server.requests == [BlobRequest("GET", "/llm/blob", start, end, 206)]


def test_a_range_past_the_end_is_416(folder: Path) -> None:
    """The answer names the size, so that a client can ask again."""
    with BlobServer(folder) as server:
        answer = httpx.get(f"{server.url}/llm/blob", headers={"range": "bytes=256000-"})

    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */256000")


def test_head_has_the_headers_and_no_body(folder: Path) -> None:
    """HEAD tells size and ETag, those of GET; one connection serves both."""
    with BlobServer(folder) as server, httpx.Client(base_url=server.url) as client:
        head, get = client.head("/llm/blob"), client.get("/llm/blob")

    assert head.content == b""
    assert get.content == CONTENT
    assert {name: head.headers[name] for name in ("etag", "content-length")} == {
        name: get.headers[name] for name in ("etag", "content-length")
    }


def test_if_match_fails_once_the_file_has_changed(folder: Path) -> None:
    """A strong ETag holds for as long as the bytes are the same, then it is 412."""
    with BlobServer(folder) as server, httpx.Client(base_url=server.url) as client:
        condition = {"if-match": client.get("/llm/blob").headers["etag"]}
        before = client.get("/llm/blob", headers=condition)
        (folder / "llm" / "blob").write_bytes(b"other")
        after = client.get("/llm/blob", headers=condition)

    assert (before.status_code, after.status_code) == (200, 412)


def test_weak_and_missing_etags(folder: Path) -> None:
    """A weak ETag is marked as such and satisfies no If-Match; "none" sends no ETag."""
    with BlobServer(folder, etag="weak") as server:
        etag = httpx.head(f"{server.url}/llm/blob").headers["etag"]
        answer = httpx.get(f"{server.url}/llm/blob", headers={"if-match": etag})
    with BlobServer(folder, etag="none") as server:
        headers = httpx.head(f"{server.url}/llm/blob").headers

    assert etag.startswith('W/"')
    assert answer.status_code == 412
    assert "etag" not in headers


@pytest.mark.parametrize("path", ["/llm/missing", "/llm", "/%2e%2e/secret"])
def test_what_is_no_file_of_the_folder_is_404(folder: Path, path: str) -> None:
    """Missing files, folders, and anything outside."""
    with BlobServer(folder) as server:
        assert httpx.get(f"{server.url}{path}").status_code == 404


def test_the_limit_is_shared_by_all_connections(folder: Path) -> None:
    """Four downloads at once take as long as their bytes take at the limit, not a quarter of it."""
    with BlobServer(folder, bytes_per_s=4e6) as server, ThreadPoolExecutor(4) as pool:
        start_s = time.monotonic()
        answers = list(pool.map(httpx.get, [f"{server.url}/llm/blob"] * 4))
        took_s = time.monotonic() - start_s

    assert all(answer.content == CONTENT for answer in answers)
    assert took_s >= 4 * len(CONTENT) / 4e6 * 0.95


def test_a_hook_can_refuse_a_request(folder: Path) -> None:
    """The fault's status is answered and logged, and the next request is as good as ever."""
    faults = iter([Fault(status=503), None])
    with BlobServer(folder, hook=lambda request: next(faults)) as server, httpx.Client(base_url=server.url) as client:
        statuses = [client.get("/llm/blob").status_code for _ in range(2)]

    assert statuses == [503, 200] == [request.status for request in server.requests]


@pytest.mark.parametrize("cut_after_bytes", [0, 1000])
def test_a_hook_can_cut_an_answer(folder: Path, cut_after_bytes: int) -> None:
    """The connection ends early, which a client sees as a broken answer."""
    fault = Fault(cut_after_bytes=cut_after_bytes)
    with BlobServer(folder, hook=lambda request: fault) as server, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{server.url}/llm/blob")


def test_a_fault_may_have_words_and_headers_of_its_own(folder: Path) -> None:
    """A refusal as a service would word it; its headers replace those of a good answer."""
    fault = Fault(status=503, body=b"busy", headers={"Retry-After": "7", "Accept-Ranges": "none"})
    with BlobServer(folder, hook=lambda request: fault) as server:
        answer = httpx.get(f"{server.url}/llm/blob")
    assert (answer.status_code, answer.content) == (503, b"busy")
    assert (answer.headers["retry-after"], answer.headers.get_list("accept-ranges")) == ("7", ["none"])


def test_a_range_may_be_ignored(folder: Path) -> None:
    """The whole blob with 200, as from a server that knows no ranges."""
    with BlobServer(folder, hook=lambda request: Fault(ignores_range=True)) as server:
        answer = httpx.get(f"{server.url}/llm/blob", headers={"range": "bytes=5-9"})
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert "content-range" not in answer.headers

"""A Hugging Face hub for tests: repositories of commits, small files by itself, large ones by signed redirects to another host.

Takes folders, speaks what huggingface_hub's real client asks. Plays no fault: those are hooks of the other host, a `BlobServer`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tools.blob_server import BlobServer, Hook, parse_range

SIGNATURE = "s3cr3t-signature"
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?$")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<commit>[0-9a-f]{40})/(?P<name>.+)$")
# As .gitattributes of a real repository says it.
_LARGE = re.compile(r"\.safetensors$|\.bin$|^tokenizer\.json$")


@dataclass
class Repository:
    """Commits by their sha, revisions by their names."""

    commits: dict[str, Path] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    token: str | None = None


@dataclass
class Hub:
    """A hub that runs.

    `asked` are the names of the files that were asked for; `answers` what to say instead to "info" or "file", a status and
    headers; `tampered` what the bytes of a file are, whatever was announced of it.
    """

    url: str
    cdn: BlobServer
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    answers: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    tampered: dict[str, bytes] = field(default_factory=dict)

    def commit(self, repo_id: str, folder: Path, revision: str = "main") -> str:
        """Keep the folder as it is now as the revision's newest commit; gives its sha."""
        repository = self.repositories.setdefault(repo_id, Repository())
        commit = hashlib.sha1(f"{repo_id} {len(repository.commits)}".encode()).hexdigest()
        kept = self.cdn.folder / commit
        shutil.copytree(folder, kept)
        repository.commits[commit] = kept
        repository.revisions[revision] = commit
        return commit

    def fetched(self, name: str) -> int:
        """How many bytes of a large file were asked for, in all."""
        return sum(each.end - each.start for each in self.cdn.requests if each.path.endswith(f"/{name}"))

    def forget(self) -> None:
        """Begin to count anew."""
        self.asked.clear()
        self.cdn.requests.clear()


@contextlib.contextmanager
def hub(folder: Path, hook: Hook | None = None, bytes_per_s: float | None = None) -> Iterator[Hub]:
    """Run a hub without repositories for the length of a `with` block; `folder` holds what is committed."""
    folder.mkdir()
    with BlobServer(folder, hook=hook, bytes_per_s=bytes_per_s) as cdn:
        server = _Server(("127.0.0.1", 0), _Handler)
        server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", cdn)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hub: Hub

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that is killed is a part of some tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self):
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if api := _API.match(path):
            self._info(api["repo"], api["revision"] or "main", is_whole="blobs" in parse_qs(parts.query))
        elif file := _RESOLVE.match(path):
            self._file(file["repo"], file["commit"], file["name"])
        else:
            self._refuse(404, "")

    def log_message(self, format, *args):  # noqa: A002  (the base class's name)
        """The log is `Hub.asked`."""

    def _info(self, repo_id, revision, *, is_whole):
        if self._is_refused(repo_id, "info"):
            return
        repository = self.server.hub.repositories[repo_id]
        commit = revision if revision in repository.commits else repository.revisions.get(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        folder = repository.commits[commit]
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        siblings = [_sibling(folder, name) if is_whole else {"rfilename": name} for name in names]
        body = json.dumps({"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings}).encode()
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _file(self, repo_id, commit, name):
        self.server.hub.asked.append(name)
        if self._is_refused(repo_id, "file"):
            return
        path = self.server.hub.repositories[repo_id].commits[commit] / name
        content = path.read_bytes() if path.is_file() else None
        tampered = self.server.hub.tampered.get(name)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._refuse(404, "EntryNotFound")
        elif _LARGE.search(name):
            if tampered:
                commit = "tampered"
                (self.server.hub.cdn.folder / commit).mkdir(exist_ok=True)
                (self.server.hub.cdn.folder / commit / name).write_bytes(tampered)
            headers |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "Location": f"{self.server.hub.cdn.url}/{commit}/{name}?Expires=1&Signature={SIGNATURE}",
            }
            self._answer(302, headers, b"")
        else:
            content = tampered or content
            start, end = parse_range(self.headers.get("Range"), len(content)) or (0, 0)
            headers |= {"ETag": f'"{_git_sha1(content)}"', "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
            self._answer(206 if self.headers.get("Range") else 200, headers, content[start:end])

    def _is_refused(self, repo_id, what):
        """Whether the answer was one of the test's, or that nobody without the token may see this."""
        status, headers = self.server.hub.answers.get(what, (0, {}))
        if status:
            self._answer(status, headers, json.dumps({"error": "as the test wants it"}).encode())
            return True
        repository = self.server.hub.repositories.get(repo_id)
        if repository is None:
            self._refuse(401, "RepoNotFound")
        elif repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            # What a gated repository holds can be seen, its files cannot.
            if what == "info":
                return False
            self._refuse(401, "GatedRepo")
        else:
            return False
        return True

    def _refuse(self, status, code):
        self._answer(status, {"X-Error-Code": code, "X-Error-Message": "No."}, b"")

    def _answer(self, status, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _sibling(folder, name):
    content = (folder / name).read_bytes()
    found = {"rfilename": name, "size": len(content), "blobId": _git_sha1(content)}
    if _LARGE.search(name):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(content).hexdigest()}\n"
        found["blobId"] = _git_sha1(pointer.encode())
        found["lfs"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": len(pointer),
        }
    return found


def _git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

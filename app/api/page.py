"""The page that people look at: `/` and the files that it is made of.

Takes a path, gives the file in `app/page` behind it. Files are read at the first request for them, because most starts
are watched by nobody. Needs no key: the page shows what the probes tell anyone. Knows nothing of what is on it.
"""

from __future__ import annotations

import functools
from pathlib import Path

from app.api.probes import Answer

_FOLDER = Path(__file__).resolve().parents[1] / "page"
_CONTENT_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
# Only what this server itself serves may run, be shown or be asked.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"cache-control", b"no-cache"),  # a new release's page must not run an old release's scripts
    (b"content-security-policy", _POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_STATIC = (
    "icon.svg",
    "page.css",
    "page.js",
    "prompt.css",
    "prompt.js",
    "status.css",
    "status.js",
    "waterfall.css",
    "waterfall.js",
    "answer_stream.js",
    "wording.js",
)

# Every path of the page, and its file.
PAGE = {"/": "index.html", **{f"/page/{name}": name for name in _STATIC}}


@functools.cache
def page_file(path: str) -> Answer:
    """The file behind one of the paths in `PAGE`."""
    file = _FOLDER / PAGE[path]
    return Answer(200, file.read_bytes(), _HEADERS, _CONTENT_TYPES[file.suffix])

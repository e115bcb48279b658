"""A package index that asks for a password and has no package: what pip asks of it, it finds elsewhere.

Gives an address with the password in it, and what was asked, with which password. Knows no image.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.integration.test_preflight import http_server
from tests.private_ca import send

_USER, PASSWORD = "builder", "s3cr3t-of-the-index"


@dataclass
class PrivateIndex:
    """Pages that were asked for: with the password, and without it."""

    address: str = ""
    asked: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)

    @property
    def secrets(self) -> list[bytes]:
        """The password as it is written, and as it is sent."""
        return [PASSWORD.encode(), self._sent.encode()]

    @property
    def _sent(self) -> str:
        return base64.b64encode(f"{_USER}:{PASSWORD}".encode()).decode()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """404, or 401."""
        is_known = handler.headers.get("Authorization") == f"Basic {self._sent}"
        if is_known:
            self.asked.add(handler.path)
        else:
            self.refused.append(handler.path)
        send(handler, 404 if is_known else 401, b"", "text/plain")


@contextmanager
def private_index() -> Iterator[PrivateIndex]:
    """One that answers for the length of a `with` block."""
    index = PrivateIndex()
    with http_server(index.answer) as url:
        index.address = f"{url.replace('://', f'://{_USER}:{PASSWORD}@')}/simple"
        yield index

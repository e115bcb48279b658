"""The loader's queue to a server that does not read."""

from __future__ import annotations

import socket
import threading

import pytest

from streaming.mailbox import Mailbox
from streaming.messages import FellBack, FromLoader
from streaming.wire import Connection


@pytest.fixture
def ends():
    """Two ends of a socket pair."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_sending_never_waits_and_keeps_the_order(ends):
    """Megabytes are queued at once while nobody reads, and arrive in order when somebody does."""
    ours, theirs = ends
    mailbox = Mailbox(Connection(ours, FromLoader), on_closed=lambda: None)
    sent = [FellBack(what=str(number), reason="x" * 100_000) for number in range(50)]
    for message in sent:
        mailbox.send(message)
    reader = Connection(theirs, FromLoader)
    assert [reader.recv()[0] for _ in sent] == sent
    mailbox.flush()


def test_a_reader_that_is_gone_is_told(ends):
    """The writing thread says so once, and nobody hangs."""
    ours, theirs = ends
    closed = threading.Event()
    mailbox = Mailbox(Connection(ours, FromLoader), on_closed=closed.set)
    theirs.close()
    mailbox.send(FellBack(what="a", reason="b"))
    assert closed.wait(5)
    mailbox.flush()

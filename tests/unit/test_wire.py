"""streaming.wire: whole messages and descriptors, whatever the socket does to the bytes."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.messages import ArenaMemory, Described, FromLoader, LandedChunks, Origin, Plan, Planned
from streaming.wire import Connection, ConnectionClosed, encode

ORIGIN = Origin(arena_id="a")


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield Connection(ours, FromLoader), theirs


def landed(*chunk_ids):
    return LandedChunks(origin=ORIGIN, chunk_ids=chunk_ids)


@given(st.lists(st.lists(st.integers(0, 1 << 40), max_size=5), min_size=1, max_size=5), st.data())
def test_frames_survive_any_fragmentation(messages, data):
    """However the bytes are cut, the messages come out whole and in order."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        connection = Connection(ours, FromLoader)
        stream = b"".join(encode(landed(*ids)) for ids in messages)
        received = []
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            theirs.sendall(stream[:size])
            stream = stream[size:]
            while (got := connection.try_recv()) is not None:
                received.append(got[0].chunk_ids)
        assert received == [tuple(ids) for ids in messages]


def test_a_descriptor_arrives_with_its_own_message(pair):
    """A frame that carries a descriptor, between two that do not, keeps it, close-on-exec."""
    connection, theirs = pair
    sender = Connection(theirs, FromLoader)
    read_end, write_end = os.pipe()
    sender.send(landed(1))
    sender.send(
        Planned(origin=ORIGIN, plan=Plan(0, {}, (), ()), memory=ArenaMemory("host", 0), planned_s=0.0), [write_end]
    )
    sender.send(landed(2))
    os.close(write_end)
    received = [connection.recv() for _ in range(3)]
    assert [len(fds) for _, fds in received] == [0, 1, 0]
    (fd,) = received[1][1]
    assert not os.get_inheritable(fd)
    os.write(fd, b"same pipe")
    assert os.read(read_end, 100) == b"same pipe"
    os.close(fd)
    os.close(read_end)


def test_a_message_larger_than_the_socket_buffer(pair):
    """A tokenizer of megabytes passes whole."""
    connection, theirs = pair
    message = Described(origin=ORIGIN, files={"tokenizer.json": os.urandom(3 << 20)}, entries=(), versions=())
    writer = threading.Thread(target=Connection(theirs, FromLoader).send, args=(message,))
    writer.start()
    assert connection.recv()[0] == message
    writer.join()


def test_the_end_of_the_other_process_is_told(pair):
    """A closed peer raises, also in the middle of a frame."""
    connection, theirs = pair
    theirs.sendall(encode(landed(1))[:-1])
    theirs.close()
    with pytest.raises(ConnectionClosed):
        connection.recv()


def test_writing_to_a_dead_peer_is_told(pair):
    """A send to nobody raises the same."""
    connection, theirs = pair
    theirs.close()
    with pytest.raises(ConnectionClosed):
        connection.send(landed(1))


def test_nothing_there_is_none_and_never_blocks(pair):
    """`try_recv` on a silent socket returns at once."""
    connection, _ = pair
    assert connection.try_recv() is None
    assert not connection.poll(0)

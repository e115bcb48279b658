"""The cache's parts, each by itself: index, victims, keys and the queue of writes."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.cache.eviction import Resident, victims, wanted_bytes
from streaming.cache.index import RECORD_BYTES, Index, Range, decode, encode
from streaming.cache.keys import BlobKey, key_of
from streaming.cache.write_behind import WriteBehind
from streaming.messages import BlobVersion
from streaming.options import AzureOptions
from streaming.uri import parse
from tests.unit.cache.loads import EXTENTS


@given(data=st.data(), ranges=st.lists(st.builds(Range, st.integers(0, 99), st.integers(1, 120), st.integers(0, 9))))
def test_only_whole_records_of_this_blob_count(data, ranges):
    """Whatever is cut off or changed in an index, no range comes of it that was not written."""
    key = b"k" * 32
    text = bytearray(b"".join(encode(key, found) for found in ranges))
    valid = [found for found in ranges if found.start < found.end <= 100]
    assert list(decode(key, 100, bytes(text))) == valid
    assert not list(decode(b"o" * 32, 100, bytes(text)))
    if text:
        position = data.draw(st.integers(0, len(text) - 1))
        text[position] ^= 1
        assert list(decode(key, 100, bytes(text))) == [
            found for at, found in enumerate(ranges) if found in valid and at != position // RECORD_BYTES
        ]


@given(ranges=st.lists(st.builds(Range, st.integers(0, 30), st.integers(1, 30), st.just(0))), asked=EXTENTS)
def test_a_cover_has_no_hole(ranges, asked):
    """Ranges that follow one another, or none where a byte is missing."""
    start, end = asked[0] % 30, asked[0] % 30 + 1 + asked[1] % 10
    index = Index()
    for found in ranges:
        if found.start < found.end:
            index.add(found)
    cover = index.covering(start, end)
    have = {byte for found in ranges for byte in range(found.start, found.end)}
    assert bool(cover) == (have >= set(range(start, end)))
    assert {byte for found in cover for byte in range(found.start, found.end)} >= (
        set(range(start, end)) if cover else set()
    )


@given(
    idle=st.lists(st.builds(Resident, st.floats(0, 1e9), st.text(max_size=2), st.integers(0, 100))),
    wanted=st.integers(1, 500),
)
def test_victims_are_the_oldest_and_no_more_than_it_takes(idle, wanted):
    """Enough is freed, without the youngest of them it would not be, and none goes in vain."""
    chosen = victims(sorted(idle), wanted)
    if sum(resident.nbytes for resident in idle) < wanted:
        assert chosen == []
    else:
        assert chosen == sorted(idle)[: len(chosen)]
        assert sum(resident.nbytes for resident in chosen) >= wanted > sum(each.nbytes for each in chosen[:-1])


@pytest.mark.parametrize(
    ("nbytes", "used", "limit", "free", "reserve", "expected"),
    [(1, 8, 10, 99, 9, 0), (3, 8, 10, 99, 9, 1), (3, 0, 10, 10, 9, 2), (3, 9, 10, 11, 9, 2)],
)
def test_room_is_what_limit_and_reserve_both_leave(nbytes, used, limit, free, reserve, expected):
    """The larger of the two shortfalls has to go."""
    assert wanted_bytes(nbytes, used, limit, free, reserve) == expected


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://host/base/", "https://host/base/s"),
        ("az://models/x", "http://127.0.0.1:10000/acc/models/x/s"),
        ("s3://bucket/x", "s3://bucket/x/s"),
        ("/disk/x", "file:///disk/x/s"),
    ],
)
def test_a_key_names_the_store(uri, expected):
    """Two accounts' blobs of one name differ; what a location shows holds no secret."""
    azure = AzureOptions(account_name="acc", endpoint="http://127.0.0.1:10000/acc")
    key = key_of(parse(uri, azure), BlobVersion("s", 1, '"e"'))
    assert key == BlobKey(uri=expected, etag='"e"', size_bytes=1)


def test_writes_are_dropped_rather_than_waited_for():
    """While one item is being written, as many wait as the limit allows; the end takes no longer than it may."""
    written, go_on = [], threading.Event()

    def write(item: memoryview) -> None:
        go_on.wait()
        written.append(bytes(item))

    queue = WriteBehind(write, 3)
    for item in (b"a", b"b", b"c", b"d"):
        queue.offer(memoryview(item))
    go_on.set()
    queue.finish(10)
    assert written == [b"a", b"b", b"c"]


def test_the_end_does_not_wait_for_a_disk_that_hangs():
    """What could not be written within the time is dropped."""
    written, begun, go_on = [], threading.Event(), threading.Event()

    def write(item: memoryview) -> None:
        begun.set()
        go_on.wait()
        written.append(bytes(item))

    queue = WriteBehind(write, 3)
    for item in (b"a", b"b"):
        queue.offer(memoryview(item))
    assert begun.wait(10)
    queue.finish(0.01)
    go_on.set()
    queue.finish(10)
    assert written == [b"a"]

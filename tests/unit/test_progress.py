"""streaming.progress: rate and time left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.progress import Progress


def test_a_steady_load_knows_its_end():
    """At a constant rate the ETA is exact."""
    progress = Progress(100, start_s=0.0)
    for second in range(1, 5):
        progress.add(10, float(second))
    assert progress.throughput_bytes_per_s(4.0) == pytest.approx(10)
    assert progress.eta_s(4.0) == pytest.approx(6)


def test_a_stall_shows_as_a_falling_rate():
    """The window ends now, not at the last byte."""
    progress = Progress(100, start_s=0.0)
    progress.add(50, 1.0)
    assert progress.throughput_bytes_per_s(10.0) == pytest.approx(5)


def test_no_rate_no_eta():
    """Before the first byte nobody knows."""
    assert Progress(100, start_s=0.0).eta_s(1.0) is None


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0.001, 3)), max_size=50))
def test_landed_bytes_add_up_and_the_eta_is_never_negative(steps):
    """Whatever the rhythm, bytes are counted exactly and time left is 0 or more."""
    progress = Progress(1 << 30, start_s=0.0)
    now_s = 0.0
    for nbytes, wait_s in steps:
        now_s += wait_s
        progress.add(nbytes, now_s)
    assert progress.landed_bytes == sum(nbytes for nbytes, _ in steps)
    eta_s = progress.eta_s(now_s + 0.1)
    assert eta_s is None or eta_s >= 0


@given(
    lanes=st.integers(1, 32),
    chunks=st.integers(4, 200),
    bytes_per_s=st.floats(1e6, 1e9),
)
def test_lanes_that_land_in_step_mislead_nobody(lanes, chunks, bytes_per_s):
    """From the first chunk on the time left is right to a factor of two, in the second half to three tenths and a round."""
    chunk_bytes = 1 << 20
    total_bytes = chunks * lanes * chunk_bytes
    progress = Progress(total_bytes, start_s=0.0, round_bytes=lanes * chunk_bytes)
    round_s = lanes * chunk_bytes / bytes_per_s
    end_s = chunks * round_s
    for number in range(chunks):
        for lane in range(lanes):
            at_s = (number + 1) * round_s + lane * 1e-6 * round_s
            progress.add(chunk_bytes, at_s)
            if progress.landed_bytes == total_bytes:
                break
            left_s = end_s - at_s
            eta_s = progress.eta_s(at_s)
            assert eta_s <= 2 * (left_s + round_s)
            if at_s > end_s / 2:
                assert abs(eta_s - left_s) <= 0.3 * left_s + round_s

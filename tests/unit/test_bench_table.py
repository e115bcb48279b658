"""The arithmetic and the words of `coldstream bench`."""

from __future__ import annotations

import pytest

from app.bench.rounds import schedule
from app.bench.server import reason
from app.bench.table import columns, figures, gains_pct, table, verdict
from app.errors import UsageError
from app.settings import parse
from tests.unit.configurations import URI

STAGED = {
    "artifact_fetch_start": 0.4,
    "artifact_fetch_end": 1.6,
    "host_staging_complete": 4.2,
    "model_load_complete": 8.8,
    "first_token_time": 9.1,
    "ready_time": 9.2,
    "first_answer_time": 9.4,
}


def runs(*first_answers_s):
    """Runs whose first answers came then and whose other columns are 1."""
    spans = dict.fromkeys(("fetch_s", "stage_s", "load_s", "ttft_s", "cold_start_s"), 1)
    return [{**spans, "first_answer_s": s} for s in first_answers_s]


def test_columns_are_the_spans_between_milestones():
    """Each span starts where the one before it ended; the answer is counted from exec."""
    spans = {"fetch_s": 1.2, "stage_s": 2.6, "load_s": 4.6, "ttft_s": 0.3, "cold_start_s": 8.7}
    assert columns(STAGED) == {**STAGED, **spans, "first_answer_s": 9.4}


def test_figures_are_median_minimum_and_maximum():
    """An outlier moves the maximum alone."""
    found = figures({"direct-gpu": runs(3.0, 99.0, 1.0)})
    assert found["direct-gpu"]["first_answer_s"] == {"median": 3.0, "min": 1.0, "max": 99.0}
    assert found["direct-gpu"]["load_s"] == {"median": 1, "min": 1, "max": 1}


def test_the_gain_is_that_of_the_first_over_each_other():
    """The published figures: 4.8 s instead of 9.1 s are 47.3 %; slower is a negative gain."""
    found = figures({"a": runs(4.8), "b": runs(9.1), "c": runs(4.0)})
    assert gains_pct(found) == {"b": 47.3, "c": -20.0}
    assert gains_pct(figures({"a": runs(4.8)})) == {}


def test_the_table_has_a_row_per_strategy():
    """Columns are aligned, the first strategy has no gain over itself."""
    header, first, second = table(figures({"direct-gpu": runs(4.8, 5.0, 4.7), "host-staging": runs(9.6)}))
    assert header.split() == [
        "strategy",
        "fetch_s",
        "stage_s",
        "load_s",
        "ttft_s",
        "cold_start_s",
        "first_answer_s",
        "gain",
    ]
    assert first.split()[0] == "direct-gpu"
    assert first.endswith("4.80 (4.70-5.00)        -")
    assert second.endswith("9.60 (9.60-9.60)   50.0 %")
    assert len(header) == len(first) == len(second)


@pytest.mark.parametrize(
    ("slowest_s", "says"),
    [
        (30.0, "30.00 s, fits one autoscaler cycle (30-60 s)"),
        (31.0, "31.00 s, fits an autoscaler cycle of 60 s, but not one of 30 s"),
        (60.1, "60.10 s, does not fit one autoscaler cycle (30-60 s)"),
    ],
)
def test_the_verdict_looks_at_the_slowest(slowest_s, says):
    """A median within the cycle is no promise."""
    assert verdict(figures({"direct-gpu": runs(1.0, 1.0, slowest_s), "host-staging": runs(99.0)})).endswith(says)


def test_strategies_take_turns_at_being_first():
    """Every strategy runs once a round, and each starts as many rounds as the others."""
    assert list(schedule(["a", "b"], 3)) == [(1, "a"), (1, "b"), (2, "b"), (2, "a"), (3, "a"), (3, "b")]
    assert list(schedule(["a"], 2)) == [(1, "a"), (2, "a")]


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("coldstream: no model: write this", "no model: write this"),
        ("x INFO app.serve: y\nx ERROR app.supervisor: BlobNotFound: az://a/b: nothing\nbye\n", "BlobNotFound: az://a/b: nothing"),
        ("Segmentation fault\n\n", "Segmentation fault"),
        ("", "the server ended without a word"),
    ],
)  # fmt: skip
def test_the_reason_is_the_line_that_says_why(log, why):
    """What a failed server is reported with."""
    assert reason(log) == why


def test_the_servers_get_the_command_line_of_serve():
    """Everything but the bench's own flags is passed on, so that `serve` means the same by it."""
    argv = ["bench", "--runs", "2", "--dtype", "float32", URI, "--strategy", "HOST-staging", "--memory-limit", "-1"]
    argv += ["--no-host-fallback", "--served-model-name", "a", "b", "--warmup-prompt=--x", "--config", "/dev/null"]
    command = parse(argv, {})
    assert command.options == {"--runs": 2, "--strategy": ("host-staging",), "--prompt": "Hello"}
    served = parse(command.serve_words, {})
    assert (served.name, served.settings) == ("serve", command.settings)
    assert served.settings.model.served_model_names == ("a", "b")
    assert served.settings.startup.warmup_prompt == "--x"
    assert "--config=/dev/null" in command.serve_words


def test_the_servers_command_lines_have_no_secret():
    """Every user of the machine can read them: the key goes another way."""
    words = ("bench", URI, "--api-key", "s3cret", "t00", "--port", "1")
    assert parse(words, {}).serve_words == ("serve", URI, "--port=1")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--runs", "0"], "flag --runs: expected an integer of at least 1"),
        (["--strategy", "direct-gpu,nvme"], "flag --strategy: expected direct-gpu, host-staging or both"),
        (["--strategy", "direct-gpu,direct-gpu"], "flag --strategy"),
        (["--run", "2"], "did you mean --runs?"),
    ],
)
def test_refused_flags(argv, part):
    """A mistake is one line that says what is expected."""
    with pytest.raises(UsageError) as caught:
        parse(["bench", URI, *argv], {})
    assert part in str(caught.value)

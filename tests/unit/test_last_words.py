"""app.last_words: the container's termination message."""

from __future__ import annotations

from app import command, last_words


def test_the_reason_replaces_what_was_there(tmp_path):
    """A kubelet shows one reason, the last one."""
    log = tmp_path / "termination-log"
    log.write_text("an earlier and longer reason")
    last_words.leave("the source is gone", str(log))
    assert log.read_text() == "the source is gone"


def test_no_file_is_made_where_no_kubelet_has_put_one(tmp_path):
    """Outside of a container there is nothing to write to, and that is no error."""
    last_words.leave("reason", str(tmp_path / "termination-log"))
    assert list(tmp_path.iterdir()) == []


def test_a_kubelet_reads_four_kilobytes(tmp_path):
    """More is not written."""
    log = tmp_path / "termination-log"
    log.touch()
    last_words.leave("x" * 10_000, str(log))
    assert log.stat().st_size == 4096


def test_a_command_that_cannot_begin_leaves_its_reason_too(tmp_path, monkeypatch, capsys):
    """A usage error's line on standard error is the termination message as well."""
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(last_words, "TERMINATION_LOG", str(log))
    assert command.run(["serve", "--no-such-flag"], {}, (), 0.0) == 2
    assert log.read_text() == capsys.readouterr().err.strip().removeprefix("coldstream: ")
    assert "--no-such-flag" in log.read_text()

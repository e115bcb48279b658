"""Stop strings against a naive reference that looks at the text one character at a time."""

from hypothesis import given
from hypothesis import strategies as st

from app.text.stop_strings import StopStrings

# Few letters, so that stop strings occur, overlap and almost occur.
letters = st.text(alphabet="ab.", max_size=30)
stops = st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), max_size=4)


def naive(text, stop_strings):
    """The text before the stop string that is complete first; the longest of several."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stop_strings if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def run(pieces, stop_strings):
    cutter = StopStrings(stop_strings)
    given_out = []
    for piece in pieces:
        text, stopped = cutter.push(piece)
        given_out.append(text)
        if stopped:
            return given_out, True
    return [*given_out, cutter.flush()], False


@given(st.lists(letters, max_size=8), stops)
def test_any_split_of_the_text_is_cut_as_the_whole(pieces, stop_strings):
    """Wherever the pieces' borders fall, the text is cut exactly where the whole text would be."""
    given_out, stopped = run(pieces, stop_strings)
    assert ("".join(given_out), stopped) == naive("".join(pieces), stop_strings)


@given(letters, stops)
def test_characters_one_by_one_are_cut_as_the_whole(text, stop_strings):
    """One character at a time and all at once give the same text."""
    by_character, _ = run(list(text), stop_strings)
    at_once, _ = run([text], stop_strings)
    assert "".join(by_character) == "".join(at_once) == naive(text, stop_strings)[0]


@given(letters, stops)
def test_nothing_is_held_back_without_need(text, stop_strings):
    """What is held back is always the beginning of a stop string."""
    cutter = StopStrings(stop_strings)
    _, stopped = cutter.push(text)
    held = cutter.flush()
    assert stopped or not held or any(stop.startswith(held) and stop != held for stop in stop_strings)


def test_without_stop_strings_everything_passes():
    """No stop strings, no delay."""
    assert StopStrings(()).push("text") == ("text", False)


def test_a_stop_string_across_pieces_is_never_given_out():
    """The beginning of a stop string waits until it is complete or broken."""
    cutter = StopStrings(["</s>"])
    assert cutter.push("a<") == ("a", False)
    assert cutter.push("/s") == ("", False)
    assert cutter.push("<") == ("</s", False)
    assert cutter.push("/s> more") == ("", True)

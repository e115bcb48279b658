"""Incremental detokenising: the pieces make up the whole, and no piece has half a character."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from app.text.detokenizer import Detokenizer
from app.text.stop_strings import StopStrings
from app.text.token_text import TokenText
from tests.unit.scripted_engine import byte_tokenizer

TEXTS = [
    "Hello, world!",
    "  leading and trailing  ",
    "naïve café, Ünïcödé, ß",
    "Привет, мир",
    "你好世界。こんにちは 안녕하세요",
    "مرحبا بالعالم שלום हिन्दी ไทย",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 👍🏽 𝒳𐍈",
    "tabs\tand\n\nnewlines\r\n   runs",
    "<s>special</s> in text",
    "",
]


def sentencepiece_like():
    """A BPE as Llama-2 has it: metaspaces, byte fallback, the first space stripped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += list("abcdefghijklmnopqrstuvwxyzHPwo,.!éßПривет你世")
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "w"), ("h", "e"), ("l", "l")]
    vocab |= {left + right: len(vocab) + index for index, (left, right) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    return tokenizer


def metaspace():
    """A unigram model with the Metaspace decoder, which drops the first token's space."""
    pieces = ["<unk>", "▁", "▁the", "▁a", "s", "▁▁", *"abcdefgh"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(index)) for index, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece():
    """WordPiece: continuations are glued, words are spaced, punctuation is cleaned up."""
    pieces = ["[UNK]", "[CLS]", "hello", "world", "##s", "##ing", "n't", ".", "!", "do", "'s", "a"]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken("[CLS]", special=True)])
    return tokenizer


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "sentencepiece": sentencepiece_like(),
    "metaspace": metaspace(),
    "wordpiece": wordpiece(),
}


def detokenizer(tokenizer):
    added = tokenizer.get_added_tokens_decoder()
    return Detokenizer(tokenizer, frozenset(token_id for token_id, token in added.items() if token.special))


def pieces_of(tokenizer, token_ids):
    growing = detokenizer(tokenizer)
    return [*(growing.push(token_id) for token_id in token_ids), growing.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_the_pieces_make_up_the_whole(name, data):
    """For any ids, even invalid and unknown ones, the pieces concatenate to the whole decoding."""
    tokenizer = TOKENIZERS[name]
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 2), max_size=40))
    assert "".join(pieces_of(tokenizer, token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)


@given(st.lists(st.sampled_from(range(1, 259)), max_size=12), st.lists(st.integers(0, 310), max_size=12))
def test_runs_of_byte_tokens_make_up_the_whole(some_bytes, others):
    """Byte fallback, whose decoding of a run depends on its last byte, is exact as well."""
    tokenizer = TOKENIZERS["sentencepiece"]
    token_ids = [*others, *some_bytes, *others[:3], *some_bytes[:4]]
    assert "".join(pieces_of(tokenizer, token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)))
def test_no_piece_has_half_a_character(name, text):
    """For any text, every piece is whole characters of it: no replacement character appears."""
    tokenizer = TOKENIZERS[name]
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = pieces_of(tokenizer, token_ids)
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=True)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte():
    """A four-byte character is silent for three tokens and then whole."""
    tokenizer = TOKENIZERS["bytes"]
    assert pieces_of(tokenizer, tokenizer.encode("🙂a", add_special_tokens=False).ids) == ["", "", "", "🙂", "a", ""]


def test_an_incomplete_character_shows_at_the_end():
    """What stays incomplete becomes U+FFFD when the sequence ends."""
    tokenizer = TOKENIZERS["bytes"]
    half = tokenizer.encode("🙂", add_special_tokens=False).ids[:2]
    assert pieces_of(tokenizer, half) == ["", "", "\ufffd"]


def test_a_long_sequence_is_decoded_in_linear_time():
    """Each push decodes a few tokens, not the sequence so far."""
    tokenizer = TOKENIZERS["bytes"]
    decoded = []

    class Counting:
        id_to_token = staticmethod(tokenizer.id_to_token)

        @staticmethod
        def decode(token_ids, *, skip_special_tokens):
            decoded.append(len(token_ids))
            return tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    token_ids = tokenizer.encode("".join(random.choices("ab🙂é", k=300)), add_special_tokens=False).ids
    growing = Detokenizer(Counting, frozenset())
    assert "".join(map(growing.push, token_ids)) == tokenizer.decode(token_ids)
    assert max(decoded) <= 8


def finish(token_text, token_ids, reason):
    last = len(token_ids) - 1
    return [token_text.push(token_id, reason if at == last else None) for at, token_id in enumerate(token_ids)]


def test_the_token_that_stopped_a_sequence_has_no_text():
    """With the reason "stop" the last token is the stop token, which is not shown."""
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.encode("abc", add_special_tokens=False).ids
    assert finish(TokenText(detokenizer(tokenizer), []), ids, "stop") == [
        (("a",), None),
        (("b",), None),
        (("",), "stop"),
    ]
    assert finish(TokenText(detokenizer(tokenizer), []), ids, "length")[-1] == (("c",), "length")


def test_the_end_gives_out_what_was_held_back():
    """Half a character and half a stop string are both shown when the length ends the sequence."""
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.encode("ab🙂", add_special_tokens=False).ids[:-1]
    shown = finish(TokenText(detokenizer(tokenizer), ["bc"]), ids, "length")
    assert "".join(text for texts, _ in shown for text in texts) == "ab\ufffd"
    assert shown[1] == ((), None)


def test_a_stop_string_in_the_last_piece_is_a_stop():
    """A stop string that completes with the last token wins over "length"."""
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.encode("abc", add_special_tokens=False).ids
    assert finish(TokenText(detokenizer(tokenizer), ["bc"]), ids, "length") == [
        (("a",), None),
        ((), None),
        ((), "stop"),
    ]


def test_text_that_goes_on_from_a_prompt_keeps_its_first_space():
    """A decoder that strips the very first space does not strip it behind a prompt."""
    tokenizer = Tokenizer(
        models.WordLevel({"\u2581The": 0, "\u2581sky": 1, "\u2581is": 2, "<unk>": 3}, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Metaspace()
    alone, behind = Detokenizer(tokenizer, frozenset()), Detokenizer(tokenizer, frozenset(), after=(0, 1))
    assert "".join(map(alone.push, (1, 2))) == "sky is"
    assert "".join(map(behind.push, (1, 2))) == " sky is"


def test_a_prompt_that_ends_within_a_character_is_no_context():
    """Half a character of the prompt changes nothing of the answer's text."""
    tokenizer = byte_tokenizer()
    first, *rest = tokenizer.encode("\u00e9", add_special_tokens=False).ids
    assert rest
    behind = Detokenizer(tokenizer, frozenset(), after=(first,))
    ids = tokenizer.encode("ok", add_special_tokens=False).ids
    assert "".join(map(behind.push, ids)) == "ok"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_every_token_has_its_part_of_the_text(name, data):
    """For any ids there is one text per token, and together they are what was given out, piece by piece."""
    tokenizer = TOKENIZERS[name]
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 2), max_size=40))
    growing = detokenizer(tokenizer)
    told = []
    for token_id in token_ids:
        piece = growing.push(token_id)
        texts = growing.take_token_texts()
        assert "".join(texts) == piece
        told += texts
    piece = growing.flush()
    told += (texts := growing.take_token_texts())
    assert "".join(texts) == piece
    assert len(told) == len(token_ids)


def test_a_character_is_the_text_of_the_token_that_completes_it():
    """The first bytes of a character have no text; byte tokens do not lose theirs to the token behind them."""
    for name, text, expected in (
        ("bytes", "a\u00e9b", ["a", "", "\u00e9", "b"]),
        ("sentencepiece", "\u00fcw", ["", "", "\u00fc", "w"]),
    ):
        tokenizer = TOKENIZERS[name]
        growing = detokenizer(tokenizer)
        for token_id in tokenizer.encode(text, add_special_tokens=False).ids:
            growing.push(token_id)
        growing.flush()
        assert growing.take_token_texts() == expected


@given(
    text=st.text(alphabet="ab.\u00e9", max_size=20),
    stops=st.lists(st.text(alphabet="ab.\u00e9", min_size=1, max_size=4), max_size=3),
    include=st.booleans(),
    reason=st.sampled_from(["stop", "length"]),
)
def test_shown_tokens_are_the_text_that_stop_strings_leave(text, stops, include, reason):
    """Whatever the stop strings cut or hold back, the shown tokens' texts are the cut text, a prefix of the tokens."""
    tokenizer = TOKENIZERS["bytes"]
    ids = [*tokenizer.encode(text, add_special_tokens=False).ids, 257]
    whole = StopStrings(stops, include=include)
    expected, stopped = whole.push(text)
    expected += "" if stopped else whole.flush()
    shown: list[str] = []
    token_text = TokenText(detokenizer(tokenizer), stops, include_stop=include)
    for at, token_id in enumerate(ids):
        texts, ended = token_text.push(token_id, reason if at == len(ids) - 1 else None)
        shown += texts
        if ended is not None:
            break
    assert "".join(shown) == expected
    assert ended == ("stop" if stopped else reason)
    assert len(shown) <= len(ids)
    assert stopped or len(shown) == len(ids)


def test_a_stop_token_shows_its_text_only_if_stops_are_included():
    """A stop token that is a word is hidden, or shown with include_stop."""
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.encode("ab", add_special_tokens=False).ids
    shown = finish(TokenText(detokenizer(tokenizer), [], include_stop=True), ids, "stop")
    assert shown == [(("a",), None), (("b",), "stop")]

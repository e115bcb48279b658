"""What single tokens are called, and the bytes that they stand for."""

from hypothesis import given
from hypothesis import strategies as st

from app.text.text_model import TextModel
from app.text.token_names import TokenNames
from tests.unit.scripted_engine import EOS, byte_text_model, byte_tokenizer
from tests.unit.test_text_detokenizer import metaspace, sentencepiece_like


def test_a_token_keeps_its_leading_space():
    """A name is the token's text within a sequence, where no decoder strips the space."""
    tokenizer = metaspace()
    assert TokenNames(tokenizer).text(tokenizer.token_to_id("\u2581the")) == " the"


def test_special_tokens_have_names_and_unknown_ids_none():
    """A special token is called as it is written; an id without a token is the empty text."""
    names = TokenNames(byte_tokenizer())
    assert (names.text(EOS), names.text(9999)) == ("<eos>", "")
    assert names.piece_bytes(9999, "") == b""


@given(st.text(max_size=20))
def test_the_bytes_of_a_texts_tokens_are_the_texts(text):
    """Token by token, half characters included, the bytes make up the text's UTF-8."""
    model = byte_text_model()
    ids = model.encode(text, False)
    pieces = model.token_texts(ids, skip_special_tokens=True)
    assert b"".join(map(model.names.piece_bytes, ids, pieces)) == text.encode()


def test_a_byte_token_is_its_byte():
    """SentencePiece writes the bytes of characters that it lacks as <0xHH>."""
    tokenizer = sentencepiece_like()
    assert TokenNames(tokenizer).piece_bytes(tokenizer.token_to_id("<0xC3>"), "") == b"\xc3"


@given(st.text(max_size=30), st.booleans())
def test_an_echoed_text_is_split_among_its_tokens(text, adds):
    """Encoding with texts gives the plain encoding's ids, and parts that make up the very text that was sent."""
    for model in (byte_text_model(), TextModel.from_files({"tokenizer.json": sentencepiece_like().to_str().encode()})):
        ids, texts = model.encode_with_texts(text, adds)
        assert ids == model.encode(text, adds)
        assert len(texts) == len(ids)
        assert not ids or "".join(texts) == text

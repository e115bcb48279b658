"""Everything textual of one checkpoint: encode, decode, chat prompts.

Takes the checkpoint's metadata files, gives token ids and text, equal to transformers' own. Uses the
`tokenizers` library directly: AutoTokenizer would import torch. Knows no weights and no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from app.errors import InvalidRequest
from app.text.chat_template import ChatTemplate, Message, read_templates
from app.text.detokenizer import Detokenizer
from app.text.special_tokens import read_special_tokens
from streaming.errors import CheckpointError


class TokenizerMissing(CheckpointError):
    """There is no tokenizer.json: the engine may be able to make one of the other files."""


class TextModel:
    """One checkpoint's tokenizer and chat template.

    Args:
        tokenizer: As tokenizer.json describes it.
        chat: The checkpoint's templates; there may be none.
    """

    def __init__(self, tokenizer: Tokenizer, chat: ChatTemplate):
        self._tokenizer = tokenizer
        self._chat = chat
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        # Added tokens may leave holes in the numbering.
        self.vocab_size = max(tokenizer.get_vocab_size(), max(added, default=-1) + 1)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> TextModel:
        """Build from metadata files by base name: tokenizer.json and, where present, its companions.

        Raises:
            TokenizerMissing: No tokenizer.json.
            CheckpointError: One of the files is malformed.
        """
        if "tokenizer.json" not in files:
            raise TokenizerMissing("the checkpoint has no tokenizer.json: convert its tokenizer files first")
        config = _parse_object(files, "tokenizer_config.json")
        special = read_special_tokens(config, _parse_object(files, "special_tokens_map.json"))
        tokenizer = _parse_tokenizer(files["tokenizer.json"])
        _add_unknown(tokenizer, special.added)
        # tokenizer.json may carry training's cut and padding; a prompt wants neither.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
        return cls(tokenizer, ChatTemplate(read_templates(files.get("chat_template.jinja"), config), special.named))

    def encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """The text's token ids; call it in a thread, a long prompt takes seconds.

        Raises:
            InvalidRequest: The text is not Unicode (an unpaired surrogate).
        """
        try:
            # `encode` would hold the GIL, and with it the event loop, all that time; this one lets it go.
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError as exc:
            raise InvalidRequest("the text has an unpaired surrogate: send valid Unicode") from exc
        return tuple(encoding.ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The whole text of these ids, without special tokens; ids outside the vocabulary have none."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def new_detokenizer(self, after: Sequence[int] = ()) -> Detokenizer:
        """A decoder for one sequence that grows token by token; its text goes on from that of `after`."""
        return Detokenizer(self._tokenizer, self._special_ids, after)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt of a chat, special tokens included: encode it without adding any.

        Raises:
            InvalidRequest: There is no chat template, or it refuses these messages.
        """
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt, tools=tools)


def _parse_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, b"{}"))
    except ValueError as exc:
        raise CheckpointError(f"{name} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} holds no JSON object")
    return value


def _parse_tokenizer(serialized: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(serialized)
    except Exception as exc:  # tokenizers raises plain Exception (ValueError since 0.22)
        raise CheckpointError(f"tokenizer.json cannot be read: {exc}") from exc


def _add_unknown(tokenizer: Tokenizer, tokens: Sequence[AddedToken]) -> None:
    """Add the tokens that tokenizer_config.json names and tokenizer.json lacks, as transformers does."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in tokens if token.content not in known])

"""Everything textual of one checkpoint: encode, decode, chat prompts.

Takes the checkpoint's metadata files, gives token ids and text, equal to transformers' own. Uses the
`tokenizers` library directly: AutoTokenizer would import torch. Knows no weights and no HTTP.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer

from app.errors import InvalidRequest
from app.text.chat_template import ChatTemplate, Message, read_templates
from app.text.detokenizer import Detokenizer
from app.text.special_tokens import read_special_tokens
from app.text.token_names import TokenNames
from streaming.errors import CheckpointError

# Before the first text, between the two, behind the second: as Qwen, StarCoder, DeepSeek and Code Llama write it.
_FILL_IN_THE_MIDDLE = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
)


class TokenizerMissing(CheckpointError):
    """There is no tokenizer.json: the engine may be able to make one of the other files."""


class TextModel:
    """One checkpoint's tokenizer and chat template.

    Args:
        tokenizer: As tokenizer.json describes it.
        chat: The checkpoint's templates; there may be none.
        config: tokenizer_config.json, with the special tokens and the template that it leaves to other files.
    """

    def __init__(self, tokenizer: Tokenizer, chat: ChatTemplate, config: Mapping[str, Any]):
        self._tokenizer = tokenizer
        self._chat = chat
        self.config = config
        self.names = TokenNames(tokenizer)
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
        templates = read_templates(files.get("chat_template.jinja"), config)
        shown = {"chat_template": templates["default"]} if "default" in templates else {}
        return cls(tokenizer, ChatTemplate(templates, special.named), config | special.named | shown)

    def encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """The text's token ids; call it in a thread, a long prompt takes seconds.

        Raises:
            InvalidRequest: The text is not Unicode (an unpaired surrogate).
        """
        # `encode` would hold the GIL, and with it the event loop, all that time; this one lets it go.
        encode = self._tokenizer.encode_batch_fast
        return tuple(self._encoding(encode, text, add_special_tokens).ids)

    def encode_with_texts(self, text: str, add_special_tokens: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The text's token ids, and the part of the text that each stands for: together they are the text.

        Raises:
            InvalidRequest: The text is not Unicode (an unpaired surrogate).
        """
        encoding = self._encoding(self._tokenizer.encode_batch, text, add_special_tokens)
        # A character that several tokens make up is the first one's, and what the tokenizer dropped the next one's.
        ends = list(itertools.accumulate((end for _, end in encoding.offsets), max))
        if ends:
            ends[-1] = len(text)
        return tuple(encoding.ids), tuple(text[start:end] for start, end in itertools.pairwise([0, *ends]))

    def fill_in_the_middle(self, before: str, after: str, add_special_tokens: bool) -> tuple[int, ...] | None:
        """The prompt whose answer belongs between two texts; None if the vocabulary has no tokens for that.

        Raises:
            InvalidRequest: As `encode`.
        """
        for names in _FILL_IN_THE_MIDDLE:
            prefix, suffix, middle = map(self._tokenizer.token_to_id, names)
            if prefix is not None and suffix is not None and middle is not None:
                begin = self.encode("", add_special_tokens)
                return (*begin, prefix, *self.encode(before, False), suffix, *self.encode(after, False), middle)
        return None

    def token_texts(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> tuple[str, ...]:
        """The text of each token of a whole sequence; together they are its text."""
        detokenizer = self.new_detokenizer(skip_special_tokens=skip_special_tokens)
        for token_id in token_ids:
            detokenizer.push(token_id)
        detokenizer.flush()
        return tuple(detokenizer.take_token_texts())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The whole text of these ids; ids outside the vocabulary have none."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary writes them; empty outside of it."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def new_detokenizer(self, after: Sequence[int] = (), *, skip_special_tokens: bool = True) -> Detokenizer:
        """A decoder for one sequence that grows token by token; its text goes on from that of `after`."""
        return Detokenizer(self._tokenizer, self._special_ids if skip_special_tokens else frozenset(), after)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a chat, special tokens included: encode it without adding any.

        Raises:
            InvalidRequest: As `ChatTemplate.render`.
        """
        return self._chat.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            variables=variables,
        )

    def _encoding(self, encode: Callable[..., list[Encoding]], text: str, add_special_tokens: bool) -> Encoding:
        try:
            (encoding,) = encode([text], add_special_tokens=add_special_tokens)
        except TypeError as exc:
            raise InvalidRequest("the text has an unpaired surrogate: send valid Unicode") from exc
        return encoding


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

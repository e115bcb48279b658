"""A checkpoint's special tokens, read the way transformers reads them.

Takes tokenizer_config.json and special_tokens_map.json as parsed objects, gives names and tokens. Pure;
knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken


@dataclass(frozen=True)
class SpecialTokens:
    """`named` maps "bos_token" and its like to their text; `added` are tokens the vocabulary must know."""

    named: dict[str, str]
    added: tuple[AddedToken, ...]


def read_special_tokens(config: Mapping[str, Any], special_tokens_map: Mapping[str, Any]) -> SpecialTokens:
    """The special tokens of one checkpoint.

    special_tokens_map.json is older than `added_tokens_decoder`: it counts only where that is absent, and
    then it wins over tokenizer_config.json.
    """
    decoder: Mapping[str, Any] = config.get("added_tokens_decoder") or {}
    source = config if decoder else {**config, **special_tokens_map}
    named = {name: text for name, value in source.items() if name.endswith("_token") and (text := _content(value))}
    added = [_added_token(decoder[token_id]) for token_id in sorted(decoder, key=int)]
    known = {token.content for token in added}
    added += [AddedToken(text, special=True, normalized=False) for text in named.values() if text not in known]
    return SpecialTokens(named, tuple(added))


def _content(value: object) -> str | None:
    """The text of a token that is written as a string or as an AddedToken's fields."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _added_token(fields: Mapping[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(fields["content"], **{name: fields[name] for name in flags if name in fields})

"""A tokenizer for a model that has none: byte-level BPE, as large as the model's vocabulary and as slow to parse as a real one.

Takes a vocabulary's size, writes tokenizer.json and tokenizer_config.json. Every id of 256 and above stands
for two or three letters or digits, the same in the vocabulary and in text, so that a text of one token says
which token it was.
"""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

_CHARACTERS = string.ascii_letters + string.digits


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write the two files; `vocab_size` is at least 257 and at most 242,428."""
    tokenizer = Tokenizer(models.BPE(*_vocabulary(vocab_size)))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def _vocabulary(vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocabulary = {character: token_id for token_id, character in enumerate(sorted(ByteLevel.alphabet()))}
    pairs = itertools.product(_CHARACTERS, _CHARACTERS)
    triples = ((a + b, c) for a, b, c in itertools.product(_CHARACTERS, repeat=3))
    merges = list(itertools.islice(itertools.chain(pairs, triples), vocab_size - len(vocabulary)))
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    return vocabulary, merges

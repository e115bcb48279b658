"""Tokenizer files of any format, turned into one tokenizer.json.

Imports transformers, which the server never does: it asks for this where a checkpoint has no tokenizer.json of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from streaming.errors import ModelUnsupported


def convert_tokenizer(files: Mapping[str, bytes]) -> bytes:
    """The tokenizer.json that transformers makes of `files` (base name -> content).

    Raises:
        ModelUnsupported: transformers cannot read them, or has no fast tokenizer for them.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="coldstream-tokenizer-") as folder:
        for name, content in files.items():
            Path(folder, Path(name).name).write_bytes(content)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            converted: str = tokenizer.backend_tokenizer.to_str()
        except Exception as error:  # transformers raises whatever its parsers raise
            raise ModelUnsupported(
                f"the tokenizer cannot be converted ({error}): put a tokenizer.json beside the weights"
            ) from error
    return converted.encode()

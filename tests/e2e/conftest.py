"""What tests of whole servers share: models so small that a start is all they wait for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer

from tools.random_checkpoint import write_checkpoint


class RandomModel(NamedTuple):
    """A checkpoint of random weights, and the token that follows its prompt if every one of them is in its place."""

    folder: Path
    prompt_token_ids: list[int]
    token_id: int

    def continuation(self) -> str:
        """That token's text."""
        return str(Tokenizer.from_file(str(self.folder / "tokenizer.json")).decode([self.token_id]))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    """Two layers, 0.7 MB in two shards; read it, do not write to it."""
    return _random_model(tmp_path_factory.mktemp("random"), "tiny")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    """Four layers, 59 MB in two shards: many chunks, and next to nothing to compute; read it, do not write to it."""
    return _random_model(tmp_path_factory.mktemp("random"), "small")


def _random_model(folder: Path, shape: str) -> RandomModel:
    planted = write_checkpoint(folder / "model", shape, shards=2)
    return RandomModel(folder / "model", list(planted["prompt_token_ids"]), planted["token_id"])

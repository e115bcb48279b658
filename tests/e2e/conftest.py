"""What tests of whole servers share: a model so small that a start is all they wait for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tools.random_checkpoint import write_checkpoint


class TinyModel(NamedTuple):
    """A checkpoint of random weights, and the token that follows its prompt if every one of them is in its place."""

    folder: Path
    prompt_token_ids: list[int]
    token_id: int


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Two layers, 0.7 MB in two shards; read it, do not write to it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    planted = json.loads(json.dumps(write_checkpoint(folder, "tiny", shards=2)))
    return TinyModel(folder, planted["prompt_token_ids"], planted["token_id"])

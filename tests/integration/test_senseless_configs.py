"""Fields of config.json that make no sense are refused before any weight, by our families or by transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from app.described_model import described_support, description_request
from app.engine.transformers_description import describe as describe_by_transformers
from app.model_support import NoFamily, SupportedModel, support
from streaming.describe import describe
from streaming.errors import ModelUnsupported
from streaming.messages import Entry
from streaming.options import SourceOptions
from streaming.retrying import open_retrying


@pytest.mark.parametrize(
    ("field", "value"),
    [("architectures", {"a": 1}), ("torch_dtype", ["x"]), ("eos_token_id", "x"), ("rope_theta", 0)],
)
def test_a_config_that_makes_no_sense(demo_model_dir, field, value):
    """What no family accepts is asked of transformers, as the server does; whoever decides says that it cannot be served."""
    found = describe(open_retrying(str(demo_model_dir), SourceOptions()))
    config = json.loads((demo_model_dir / "config.json").read_text())
    files = found.files | {"config.json": json.dumps(config | {field: value}).encode()}
    files.pop("generation_config.json", None)
    with pytest.raises(ModelUnsupported):
        served(files, found.entries)


def served(files: Mapping[str, bytes], entries: Sequence[Entry]) -> SupportedModel:
    try:
        return support(files, entries)
    except NoFamily:
        request = description_request(files, entries, dtype="auto")
        return described_support(files, entries, request, describe_by_transformers(request))

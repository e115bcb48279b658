"""app.described_model: what transformers need not be asked, and what its answer lays out."""

from __future__ import annotations

import json

import pytest

from app.described_model import described_support, description_request
from app.messages import DescribedModel, DescribedParameter
from app.model_support import NoFamily, support
from streaming.errors import ModelUnsupported
from streaming.messages import Entry, Group, TensorLayout

CONFIG = {"architectures": ["SomeForCausalLM"], "model_type": "some", "eos_token_id": 3, "torch_dtype": "bfloat16"}
SHAPES = {"embed": (10, 4), "experts.0": (6, 4), "experts.1": (6, 4)}
ANSWER = DescribedModel(
    parameters=(
        DescribedParameter("model.embed", (10, 4), "BF16", ("embed",)),
        DescribedParameter("model.experts", (2, 6, 4), "F32", ("experts.0", "experts.1")),
    ),
    max_model_len_tokens=64,
    vocab_size=10,
    kv_elements_per_token=32,
)


def files(**changes) -> dict[str, bytes]:
    return {"config.json": json.dumps(CONFIG | changes).encode()}


def entries(stored: str = "F32", **changes) -> list[Entry]:
    shapes = SHAPES | changes
    return [Entry(name, stored, shape, "s", 0, 0) for name, shape in shapes.items() if shape is not None]


def test_what_no_family_accepts_is_asked_about():
    """The engine gets the config as it is, every tensor's shape, and the dtype that the config or --dtype means."""
    with pytest.raises(NoFamily, match="SomeForCausalLM"):
        support(files(), entries())
    request = description_request(files(), entries())
    assert (request.config, request.dtype, request.tensors) == (files()["config.json"], "BF16", SHAPES)
    assert description_request(files(), entries(), dtype="float16").dtype == "F16"


def test_the_answer_is_laid_out():
    """What is one tensor gets its parameter's name, parts keep theirs and lie side by side, each in its dtype."""
    model = described_support(files(), entries(), description_request(files(), entries()), ANSWER)
    assert model.tensors == (
        TensorLayout("embed", "model.embed", "BF16"),
        TensorLayout("experts.0", "experts.0", "F32"),
        TensorLayout("experts.1", "experts.1", "F32"),
    )
    assert model.groups == (Group("model.experts", ("experts.0", "experts.1")),)
    assert (model.weights_bytes, model.kv_bytes_per_token) == (40 * 2 + 48 * 4, 64)
    assert (model.max_model_len_tokens, model.vocab_size, model.stop_token_ids) == (64, 10, (3,))
    assert model.transformers_dtype == "BF16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "code beside the weights is never run"),
        ({"quantization_config": {"bits": 4}}, "unquantised"),
        ({"torch_dtype": "float64"}, "float64"),
        ({"torch_dtype": ["x"]}, r"\['x'\]"),
    ],
)
def test_what_nobody_could_serve_is_not_asked(change, message):
    """The import of transformers is spared where its answer is known."""
    with pytest.raises(ModelUnsupported, match=message):
        description_request(files(**change), entries())


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (entries(embed=None), "lacks 'embed'"),
        (entries(embed=(9, 4)), r"\[9, 4\].*\[10, 4\]"),
        (entries(**{"experts.1": (5, 4)}), "model.experts"),
        (entries("I8"), "as I8"),
    ],
)
def test_tensors_must_be_what_the_class_wants(checkpoint, message):
    """Missing, misshapen and quantised tensors refuse the model, whatever the engine said."""
    with pytest.raises(ModelUnsupported, match=message):
        described_support(files(), checkpoint, description_request(files(), entries()), ANSWER)

"""What a push takes, and which of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streaming.errors import CheckpointError, SourceError
from streaming.upload_origin import HubRevision, choose, parse_origin


@pytest.mark.parametrize(
    ("words", "repo_id", "revision"),
    [
        (("microsoft/phi-4",), "microsoft/phi-4", None),
        (("microsoft/phi-4", "main"), "microsoft/phi-4", "main"),
        (("hf://microsoft/phi-4",), "microsoft/phi-4", None),
        (("hf://microsoft/phi-4", "v1"), "microsoft/phi-4", "v1"),
        (("hf://microsoft/phi-4@v1", "v1"), "microsoft/phi-4", "v1"),
        (("hf://Qwen/Qwen2.5-0.5B_x@refs/pr/3",), "Qwen/Qwen2.5-0.5B_x", "refs/pr/3"),
        (("hf://gpt2",), "gpt2", None),
    ],
)
def test_a_repository_is_named_as_the_field_names_it(words, repo_id, revision, tmp_path, monkeypatch):
    """`org/name` with a revision beside it, or `hf://` with one behind it."""
    monkeypatch.chdir(tmp_path)
    assert parse_origin(*words) == HubRevision(repo_id, revision)


@pytest.mark.parametrize(
    "text", ["gpt2", "./org/name", "../org/name", "/org/name", "org/name/", "a/b/c", "org name/x", "org/.x"]
)
def test_what_cannot_be_a_repository_is_a_path(text, tmp_path, monkeypatch):
    """Whoever means the hub by one word writes `hf://`; a folder that is not there is then named."""
    monkeypatch.chdir(tmp_path)
    assert parse_origin(text) == Path(text)
    with pytest.raises(SourceError, match="--revision is for a repository"):
        parse_origin(text, "main")


def test_a_path_that_is_there_wins(tmp_path, monkeypatch):
    """As in transformers, a folder of that name is meant; `hf://` says otherwise."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert parse_origin("org/name") == Path("org/name")
    assert parse_origin("hf://org/name") == HubRevision("org/name")


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://a/b/c",
        "hf://datasets/org/name",
        "hf://org/name@",
        "hf://org/name@a@b",
        "hf://org/name@a?b",
        "hf://-/a",
    ],
)
def test_what_is_no_repository_of_models_is_refused(text):
    """A mistyped URI is an error that says how to write it."""
    with pytest.raises(SourceError, match="write hf://org/name"):
        parse_origin(text)


INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
SMALL = ["README.md", "config.json", "tokenizer.model"]


@pytest.mark.parametrize(
    ("safetensors", "index", "chosen"),
    [
        (["model-1", "model-2", "consolidated", "model"], INDEX, ["model-1", "model-2"]),
        (["consolidated", "model", "model-1"], None, ["model"]),
        (["b", "a"], None, ["a", "b"]),
    ],
)
def test_of_safetensors_only_those_that_serve_are_chosen(safetensors, index, chosen):
    """The index decides; without one `model.safetensors`; without that all of them, as `serve` does."""
    others = ["model.safetensors.index.json"] if index else []
    left_out = [
        "pytorch_model.bin",
        "model.gguf",
        ".gitattributes",
        "original/",
        "coldstream.json",
        "coldstream.partial.json",
    ]
    names = [f"{name}.safetensors" for name in safetensors]
    found = choose("here", [*names, *SMALL, *others, *left_out], lambda: index)
    assert found == sorted([*(f"{name}.safetensors" for name in chosen), *SMALL, *others])


def test_an_index_that_names_what_is_missing_is_refused():
    """Half a download is not pushed."""
    with pytest.raises(CheckpointError, match=r"here: .* names model-2.safetensors, which is not in it"):
        choose("here", ["model-1.safetensors", "model.safetensors.index.json"], lambda: INDEX)


def test_a_checkpoint_in_another_format_is_refused():
    """Only safetensors can be served; the index is not even asked for."""
    with pytest.raises(CheckpointError, match=r"here: no \*.safetensors"):
        choose("here", ["pytorch_model.bin", "model.safetensors.index.json", "sub.safetensors/"], lambda: 1 / 0)

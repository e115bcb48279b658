"""A checkpoint without tokenizer.json is served all the same."""

from __future__ import annotations

import json

from tests.coldstream import serving


def test_the_engine_converts_what_transformers_can_read(demo_model_dir, tmp_path):
    """From vocab.json and merges.txt the same ids come out as from tokenizer.json; the log says how."""
    folder = tmp_path / "slow-tokenizer"
    folder.mkdir()
    for path in demo_model_dir.iterdir():
        if path.is_file() and "token" not in path.name:
            (folder / path.name).symlink_to(path)
    model = json.loads((demo_model_dir / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with serving(str(folder), log_path=tmp_path / "log") as server:
        server.wait_ready(120)
        answer = server.complete("The capital of France is", max_tokens=5)
        log = server.log()
    assert "Paris" in answer["choices"][0]["text"]
    assert "converts the tokenizer with transformers" in log

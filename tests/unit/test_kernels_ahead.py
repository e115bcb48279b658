"""app.engine.kernels_ahead: a GPU's kernels, compiled where there is none; and app.engine.kernel_cache, where they are found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.engine.kernel_cache import link_compiled
from app.engine.kernels_ahead import compile_kernels
from streaming.errors import ModelUnsupported
from tests.unit.hub_configs import FOLDER, HUB

# Norms of their own on its heads; and wide heads, which none of the hub's has.
NORMED = FOLDER / "Qwen3-8B.json"
WIDE = HUB["Llama-3.1-8B"][0] | {"head_dim": 256, "num_attention_heads": 16}
A100, L4, H100 = 80, 89, 90


def compile_ahead(into, *configs, capability=H100):
    """The tool, in a process without the interpreter that other tests run Triton's programs with."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "app.engine.kernels_ahead", "--into", str(into), "--capabilities", str(capability)]
    return subprocess.run([*command, *map(str, configs)], env=environ, capture_output=True, text=True, check=False)


def kernels(folder):
    """What Triton noted of each kernel, by its path."""
    return {path: json.loads(path.read_text()) for path in folder.glob("*/[!_]*.json")}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Kernels for a capability, compiled once: two models' for an H100, those that take most memory for the others."""
    wide = tmp_path_factory.mktemp("configs") / "wide.json"
    wide.write_text(json.dumps(WIDE))

    def compiled_for(capability):
        folder = tmp_path_factory.mktemp("kernels")
        done = compile_ahead(folder, *([NORMED] if capability == H100 else []), wide, capability=capability)
        assert done.returncode == 0, done.stderr
        return folder

    with ThreadPoolExecutor() as pool:
        started = {capability: pool.submit(compiled_for, capability) for capability in (L4, H100)}
        yield lambda capability: (started.get(capability) or pool.submit(compiled_for, capability)).result()


@pytest.mark.parametrize(
    ("capability", "shared_memory_kib"),
    # An A100 has more shared memory than an L4, and the same instructions.
    [
        pytest.param(A100, 163, marks=pytest.mark.slow, id="A100"),
        pytest.param(L4, 99, id="L4"),
        pytest.param(H100, 227, id="H100"),
    ],
)
def test_every_program_compiles_and_fits_the_shared_memory(compiled, capability, shared_memory_kib):
    """What the interpreter accepts, the compiler may not."""
    folder = compiled(capability)
    found = kernels(folder).values()
    assert {each["name"] for each in found} == {
        "attend_split", "attend_tile", "join_splits", "rotate_and_store", "add_rms_norm", "silu_and_mul",
    }  # fmt: skip
    assert {each["target"]["arch"] for each in found} == {capability}
    assert all(each["shared"] <= shared_memory_kib << 10 for each in found)
    assert len([path for path in folder.glob("*/*.cubin") if path.stat().st_size]) == len(found)


def test_what_is_there_is_not_compiled_again(compiled):
    """Another run, and a model that others share kernels with, find them."""
    folder = compiled(H100)
    first = {path: path.stat().st_mtime_ns for path in kernels(folder)}
    done = compile_ahead(folder, NORMED, capability=H100)
    assert done.stdout == f"{len(first)} kernels in {folder}\n"
    assert {path: path.stat().st_mtime_ns for path in kernels(folder)} == first


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (b"{}", "architecture '(none)' (model_type None) is of no family of our decoder"),
        (b"[", "config.json is not a JSON object"),
        (json.dumps(WIDE | {"dtype": "float8"}).encode(), "dtype 'float8' is not computed with"),
    ],
)
def test_a_config_of_no_model_of_ours_is_refused(config, said):
    """Before anything is compiled."""
    with pytest.raises(ModelUnsupported, match=re.escape(said)):
        compile_kernels(config, H100)


@pytest.mark.parametrize(("config", "said"), [(b"{}", "of no family of our decoder"), (None, "No such file")])
def test_a_config_that_is_none_is_named(tmp_path, config, said):
    """In one line, with the file."""
    path = tmp_path / "mine.json"
    if config is not None:
        path.write_bytes(config)
    done = compile_ahead(tmp_path / "kernels", path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"kernels_ahead: {path}: ")
    assert said in done.stderr


def test_a_cache_gets_links_to_what_it_lacks(tmp_path):
    """Where it is there already it stays, and a link that leads nowhere goes, or Triton would fail on it."""
    compiled, cache = tmp_path / "compiled", tmp_path / "somewhere" / "cache"
    for name in ("A", "B"):
        (compiled / name).mkdir(parents=True)
        (compiled / name / "kernel.cubin").write_text(name)
    assert link_compiled(compiled, cache) == 2
    (cache / "C").mkdir()
    (cache / "B").unlink()
    (cache / "B").mkdir()  # what is left of a compilation that failed
    (cache / "GONE").symlink_to(tmp_path / "older image")
    assert link_compiled(compiled, cache) == 1
    assert {path.name for path in cache.iterdir()} == {"A", "B", "C"}
    assert [(cache / name / "kernel.cubin").read_text() for name in ("A", "B")] == ["A", "B"]


def test_without_the_folder_nothing_is_linked(tmp_path):
    """An error that the engine tells of; the kernels are compiled then."""
    with pytest.raises(FileNotFoundError):
        link_compiled(tmp_path / "none", tmp_path / "cache")

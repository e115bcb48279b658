"""Fixtures that every layer of tests shares: a clean environment, the demo model, a real Azurite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from streaming.options import AzureOptions, SourceOptions
from streaming.upload import push
from tools.azurite import SETTINGS_PREFIXES, Azurite
from tools.azurite import azurite as run_azurite
from tools.demo_model import ensure_demo_model

# Read once, when anybody first imports triton: where there is no GPU, its interpreter runs the kernels.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# Read once, too, when a test's file imports torch: for tensors of a few kilobytes a second thread is no help, and a wait for a
# core that is busy. What tests start has as many threads as a user's server.
os.environ["OMP_NUM_THREADS"] = "1"

# How long an example takes says something of the machine only.
settings.register_profile("coldstream", deadline=None)
settings.load_profile("coldstream")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine that runs the tests reaches them."""
    for name in os.environ:
        if name.startswith((*SETTINGS_PREFIXES, "OMP_NUM_THREADS")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """SmolLM2-135M-Instruct as a checkpoint folder; made once per checkout."""
    return ensure_demo_model()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """A real blob service, one for the whole run: use containers of your own."""
    with run_azurite(tmp_path_factory.mktemp("azurite")) as service:
        yield service


@pytest.fixture(scope="session")
def azurite_source(azurite: Azurite) -> SourceOptions:
    """How `streaming` reaches Azurite."""
    return SourceOptions(azure=AzureOptions(connection_string=azurite.connection_string))


@pytest.fixture(scope="session")
def azure_environment(azurite: Azurite) -> dict[str, str]:
    """The variables with which a process reaches Azurite, on top of an environment without others."""
    return azurite.environment()


@pytest.fixture(scope="session")
def pushed_demo(demo_model_dir: Path, azurite_source: SourceOptions) -> str:
    """The URI of the demo model in Azurite; read it, do not write to it."""
    uri = "az://models/smollm2-135m-instruct"
    push(demo_model_dir, uri, azurite_source, quiet=True)
    return uri


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test makes a checkpoint of its own."""
    return tmp_path / "checkpoint"

"""What tests of whole servers share: models so small that a start is all they wait for, and a cloud that gives tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer

from streaming.options import SourceOptions
from streaming.upload import push
from tests.entra import Cluster, Entra, FederatedCredential
from tests.pod_identity import Pod
from tests.private_ca import PrivateCa, make_private_ca
from tools.azurite import ACCOUNT_NAME, Azurite, azurite
from tools.random_checkpoint import write_checkpoint


class RandomModel(NamedTuple):
    """A checkpoint of random weights, and the token that follows its prompt if every one of them is in its place."""

    folder: Path
    prompt_token_ids: list[int]
    token_id: int

    def tensor_count(self) -> int:
        """How many tensors its shards have."""
        return len(json.loads((self.folder / "model.safetensors.index.json").read_text())["weight_map"])

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


@pytest.fixture(scope="session")
def pushed_small(small_model: RandomModel, azurite_source: SourceOptions) -> str:
    """The URI of the small model in Azurite; read it, do not write to it."""
    uri = "az://small/model"
    push(small_model.folder, uri, azurite_source, quiet=True)
    return uri


def _random_model(folder: Path, shape: str) -> RandomModel:
    planted = write_checkpoint(folder / "model", shape, shards=2)
    return RandomModel(folder / "model", list(planted["prompt_token_ids"]), planted["token_id"])


@pytest.fixture(scope="session")
def private_ca(tmp_path_factory: pytest.TempPathFactory) -> PrivateCa:
    """Who vouches for the HTTPS servers of the tests."""
    return make_private_ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """Who signs service accounts' tokens."""
    return Cluster()


@pytest.fixture
def entra(cluster: Cluster, private_ca: PrivateCa) -> Iterator[Entra]:
    """Entra ID with the two identities of docs/aks.md and their federated credentials."""
    accounts = {"server-client-id": "coldstream", "uploader-client-id": "coldstream-uploader"}
    clients = {
        client_id: FederatedCredential(cluster.issuer, f"system:serviceaccount:coldstream:{account}")
        for client_id, account in accounts.items()
    }
    with Entra(cluster, clients).serving(private_ca) as service:
        yield service


@pytest.fixture(scope="session")
def token_storage(private_ca: PrivateCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Blob storage that takes tokens: it checks their audience, issuer and time."""
    tls = ("--cert", str(private_ca.cert_file), "--key", str(private_ca.key_file))
    with azurite(tmp_path_factory.mktemp("token-storage"), "--oauth", "basic", *tls) as service:
        yield service


@pytest.fixture
def storage_environment(private_ca: PrivateCa, token_storage: Azurite) -> dict[str, str]:
    """The way there, without a credential."""
    return private_ca.trusted | {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT_NAME,
        "AZURE_STORAGE_BLOB_ENDPOINT": token_storage.endpoint,
    }


@pytest.fixture
def server_pod(entra: Entra, tmp_path: Path) -> Pod:
    """A pod of the Deployment."""
    return Pod("Deployment/coldstream", entra, tmp_path)


@pytest.fixture
def upload_pod(entra: Entra, tmp_path_factory: pytest.TempPathFactory) -> Pod:
    """A pod of the upload's Job."""
    return Pod("Job/coldstream-upload", entra, tmp_path_factory.mktemp("upload"))

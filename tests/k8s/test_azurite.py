"""The Blob storage of `dev-cpu`: its flags are Azurite's, and its name, port and key are those that pods are told."""

from __future__ import annotations

import base64

import httpx

from streaming.options import AzureOptions
from streaming.uri import account
from tests.manifests import named
from tools import azurite

DEV = "overlays/dev-cpu"
# What the runner of these tests says itself, with values of its own.
OWN = ("--blobHost", "--blobPort", "--location", "--disableTelemetry", "--skipApiVersionCheck")


def test_azurite_takes_its_flags_and_finds_the_account_whatever_its_host_is_called(tmp_path):
    """Under the Service's full name too, whose first part is no account."""
    (container,) = named(DEV, "Deployment", "azurite")["spec"]["template"]["spec"]["containers"]
    assert {flag.partition("=")[0] for flag in container["args"]} >= set(OWN)
    flags = [flag for flag in container["args"] if flag.partition("=")[0] not in OWN]
    with azurite.azurite(tmp_path, *flags) as service:
        for host in ("azurite", "azurite.coldstream.svc.cluster.local"):
            answer = httpx.get(f"{service.endpoint}/models/x", headers={"host": f"{host}:10000"})
            assert answer.headers["x-ms-error-code"] == "AuthorizationFailure"


def test_pods_are_told_where_it_is():
    """The connection string names the Service, its port and Azurite's own account; the image is the version that is tested with."""
    held = named(DEV, "Secret", "azurite")["data"]["AZURE_STORAGE_CONNECTION_STRING"]
    connection_string = base64.b64decode(held).decode()
    service = named(DEV, "Service", "azurite")
    (port,) = service["spec"]["ports"]
    endpoint = f"http://{service['metadata']['name']}:{port['port']}/{azurite.ACCOUNT_NAME}"
    assert account(AzureOptions(connection_string=connection_string)) == (azurite.ACCOUNT_NAME, endpoint)
    assert f"AccountKey={azurite.ACCOUNT_KEY};" in connection_string
    (container,) = named(DEV, "Deployment", "azurite")["spec"]["template"]["spec"]["containers"]
    (declared,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == declared["name"]
    assert f"--blobPort={declared['containerPort']}" in container["args"]
    assert container["image"].endswith(f"/azurite:{azurite._VERSION}")

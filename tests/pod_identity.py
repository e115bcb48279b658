"""Pods as the webhook of azure-workload-identity leaves them, and a machine with a managed identity.

Takes a workload of `k8s/` (its label, its service account and that one's annotation decide), and who gives tokens; gives
variables and a token file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.entra import STORAGE, Entra
from tests.integration.test_preflight import http_server
from tests.manifests import named, pods
from tests.private_ca import send

_VARIANT = "overlays/aks-a100"
_SECRET = "s3cr3t-of-the-machine"


class Pod:
    """A pod of a workload ("Deployment/coldstream") of the AKS overlay."""

    def __init__(self, workload: str, entra: Entra, folder: Path):
        template = dict(pods(_VARIANT))[workload]
        assert template["metadata"]["labels"]["azure.workload.identity/use"] == "true"
        account = named(_VARIANT, "ServiceAccount", template["spec"]["serviceAccountName"])["metadata"]
        self.subject = f"system:serviceaccount:{account['namespace']}:{account['name']}"
        self.client_id: str = account["annotations"]["azure.workload.identity/client-id"]
        self.token_file = folder / "azure-identity-token"
        self._entra = entra
        self.project()

    def project(self, *, subject: str = "", **how: Any) -> str:
        """Have the kubelet write a token; gives it."""
        return self._entra.cluster.project(self.token_file, subject or self.subject, **how)

    def variables(self) -> dict[str, str]:
        """What the webhook puts into it."""
        return self._entra.variables(self.client_id, self.token_file)


@contextmanager
def managed_identity(entra: Entra, client_id: str) -> Iterator[dict[str, str]]:
    """The variables of a machine whose own endpoint gives tokens of one identity, in App Service's protocol."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        known = handler.headers.get("X-IDENTITY-HEADER") == _SECRET and asked.get("resource", "").rstrip("/") == STORAGE
        if not known or asked.get("client_id") != client_id:
            refusal = {
                "statusCode": 400,
                "message": "No Managed Identity found for specified ClientId/ResourceId/PrincipalId.",
            }
            send(handler, 400, json.dumps(refusal).encode(), "application/json")
            return
        token = entra.access_token(client_id)
        ends_s = int(time.time() + entra.lifetime_s)
        given = {"access_token": token, "expires_on": str(ends_s), "resource": STORAGE, "token_type": "Bearer"}
        send(handler, 200, json.dumps({**given, "client_id": client_id}).encode(), "application/json")

    with http_server(answer) as url:
        yield {
            "IDENTITY_ENDPOINT": f"{url}/msi/token",
            "IDENTITY_HEADER": _SECRET,
            "AZURE_CLIENT_ID": client_id,
            "COLDSTREAM_AZURE_CREDENTIAL": "managed-identity",
        }

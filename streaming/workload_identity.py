"""A pod's workload identity as it lies there: three variables, and the file that the kubelet writes.

Takes the Azure options, gives what is wrong with them before anybody is asked, and what the pod's token says of itself. Whether
that is true is for Entra ID to check; the token is given to nobody.
"""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from streaming.errors import AccessDenied
from streaming.options import AzureOptions

_VARIABLES = {
    "client_id": "AZURE_CLIENT_ID",
    "tenant_id": "AZURE_TENANT_ID",
    "federated_token_file": "AZURE_FEDERATED_TOKEN_FILE",
}
_HALF_INJECTED = (
    'label the pod template azure.workload.identity/use="true", give its service account the annotation '
    "azure.workload.identity/client-id, and start the pod again"
)
_UNREADABLE = "unreadable"
_MOST_SHOWN = 200


class Flaw(NamedTuple):
    """What is wrong with a credential before anybody was asked, and what to do."""

    found: str
    remedy: str

    def error(self) -> AccessDenied:
        """As an error's one line."""
        return AccessDenied(f"{self.found}: {self.remedy}")


class Claims(NamedTuple):
    """What a federated token says of itself, each on one line; "unreadable" where it says nothing that can be read."""

    issuer: str = _UNREADABLE
    subject: str = _UNREADABLE
    audience: str = _UNREADABLE
    ends: datetime | None = None


class _Body(msgspec.Struct):
    iss: str = _UNREADABLE
    sub: str = _UNREADABLE
    aud: str | list[str] = _UNREADABLE
    exp: float | None = None


def half_identity(azure: AzureOptions) -> Flaw | None:
    """Workload identity's variables, where some are set and some are not.

    AZURE_CLIENT_ID and AZURE_TENANT_ID alone may also belong to a client secret, which DefaultAzureCredential knows,
    and AZURE_CLIENT_ID to a managed identity.
    """
    missing = [variable for name, variable in _VARIABLES.items() if not getattr(azure, name)]
    given = [variable for name, variable in _VARIABLES.items() if getattr(azure, name)]
    if not missing or not given or given == ["AZURE_CLIENT_ID"]:
        return None
    lacking = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set"
    return Flaw(f"workload identity is half there: {' and '.join(given)} set, but {lacking}", _HALF_INJECTED)


def unreadable_token(azure: AzureOptions) -> Flaw | None:
    """The pod's token file, where it cannot be read."""
    path = azure.federated_token_file or ""
    if os.access(path, os.R_OK):
        return None
    what = "cannot be read by this user" if os.access(path, os.F_OK) else "is not there"
    return Flaw(f"AZURE_FEDERATED_TOKEN_FILE={path} {what}", _HALF_INJECTED)


def claims(azure: AzureOptions) -> Claims:
    """Whose token lies in the pod's file now, for whom it is and until when."""
    try:
        _, body, _ = Path(azure.federated_token_file or "").read_text(encoding="ascii").split(".")
        said = msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=_Body)
        ends = datetime.fromtimestamp(said.exp, UTC) if said.exp is not None else None
    except (OSError, ValueError, OverflowError):  # msgspec's and base64's own are ValueErrors, too
        return Claims()
    audiences = [said.aud] if isinstance(said.aud, str) else said.aud
    return Claims(_shown(said.iss), _shown(said.sub), _shown(" and ".join(audiences)), ends)


def _shown(text: str) -> str:
    return " ".join(text.split())[:_MOST_SHOWN]

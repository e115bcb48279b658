"""Which Azure credential, and why: the only file that knows azure-identity.

Takes the Azure options, gives arguments for obstore's store or a credential for the Azure SDK. The first
that is present wins: SAS token, account key, connection string, workload identity, managed identity if it
is asked for, anonymous if it is asked for, else DefaultAzureCredential without its IMDS probe (which costs
seconds on a machine that has none). Reads no environment itself; azure-identity reads its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from streaming.errors import AccessDenied
from streaming.options import AzureOptions
from streaming.uri import account, parse_connection_string

_SCOPE = "https://storage.azure.com/.default"


class Flaw(NamedTuple):
    """What is wrong with a credential before anybody was asked, and what to do."""

    found: str
    remedy: str

    def error(self) -> AccessDenied:
        """As an error's one line."""
        return AccessDenied(f"{self.found}: {self.remedy}")


_IDENTITY_VARIABLES = {
    "client_id": "AZURE_CLIENT_ID",
    "tenant_id": "AZURE_TENANT_ID",
    "federated_token_file": "AZURE_FEDERATED_TOKEN_FILE",
}
_HALF_INJECTED = (
    'label the pod template azure.workload.identity/use="true", give its service account the annotation '
    "azure.workload.identity/client-id, and start the pod again"
)


def choose(azure: AzureOptions) -> str:
    """The name of the credential to use.

    Raises:
        AccessDenied: A credential was asked for by name and a part of it is missing.
    """
    present = {
        "sas-token": bool(azure.sas_token),
        "account-key": bool(azure.account_key),
        "connection-string": bool(azure.connection_string),
        "workload-identity": bool(azure.federated_token_file and azure.client_id and azure.tenant_id),
    }
    if azure.credential == "auto":
        return next((name for name, given in present.items() if given), _without_secret(azure))
    if not present.get(azure.credential, True):
        if azure.credential == "workload-identity" and (flaw := half_identity(azure)):
            raise flaw.error()
        raise AccessDenied(
            f"credential {azure.credential!r} was asked for, but {_MISSING[azure.credential]} is not set: set it, or ask "
            "for another with --azure-credential"
        )
    return azure.credential


def is_identity(azure: AzureOptions) -> bool:
    """Whether the credential is an Entra identity, which has roles, rather than a secret or nobody.

    Raises:
        AccessDenied: As `choose`.
    """
    return choose(azure) in ("workload-identity", "managed-identity", "default")


def _without_secret(azure: AzureOptions) -> str:
    """What is left for "auto" where nothing is there whole: a pod's token that nobody can use is a mistake."""
    if azure.federated_token_file and (flaw := half_identity(azure)):
        raise flaw.error()
    return "default"


def half_identity(azure: AzureOptions) -> Flaw | None:
    """Workload identity's variables, where some are set and some are not.

    AZURE_CLIENT_ID and AZURE_TENANT_ID alone may also belong to a client secret, which DefaultAzureCredential knows,
    and AZURE_CLIENT_ID to a managed identity.
    """
    missing = [variable for name, variable in _IDENTITY_VARIABLES.items() if not getattr(azure, name)]
    given = [variable for name, variable in _IDENTITY_VARIABLES.items() if getattr(azure, name)]
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


_MISSING = {
    "sas-token": "AZURE_STORAGE_SAS_TOKEN",
    "account-key": "AZURE_STORAGE_ACCOUNT_KEY",
    "connection-string": "AZURE_STORAGE_CONNECTION_STRING",
    "workload-identity": "one of AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID, AZURE_TENANT_ID",
}


def store_arguments(azure: AzureOptions) -> dict[str, Any]:
    """Keyword arguments that make obstore's AzureStore use the chosen credential and no other.

    A provider is used even for fixed secrets, because obstore lets the environment's credentials win
    over a configured SAS token, but nothing wins over a provider.

    Raises:
        AccessDenied: The credential is incomplete, or DefaultAzureCredential finds none.
    """
    match choose(azure):
        case "sas-token":
            return _fixed("sas_token", azure.sas_token or "")
        case "account-key":
            return _fixed("access_key", azure.account_key or "")
        case "connection-string":
            return _fixed(*_secret_of_connection_string(azure))
        case "workload-identity":
            if flaw := unreadable_token(azure):
                raise flaw.error()
            names = ("client_id", "tenant_id", "federated_token_file", "authority_host")
            return {"config": {name: value for name in names if (value := getattr(azure, name))}}
        case "managed-identity":
            return {"config": {"client_id": azure.client_id} if azure.client_id else {}}
        case "anonymous":
            return {"config": {"skip_signature": True}}
        case _:
            return {"credential_provider": _default_provider(azure)}


def sdk_credential(azure: AzureOptions) -> Any:
    """The chosen credential as azure-storage-blob's clients take it (None is anonymous).

    Raises:
        AccessDenied: A part of the credential is missing.
    """
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

    match choose(azure):
        case "sas-token":
            return AzureSasCredential((azure.sas_token or "").removeprefix("?"))
        case "account-key":
            return AzureNamedKeyCredential(account(azure)[0], azure.account_key or "")
        case "connection-string":
            kind, secret = _secret_of_connection_string(azure)
            if kind == "sas_token":
                return AzureSasCredential(secret)
            return AzureNamedKeyCredential(account(azure)[0], secret)
        case "anonymous":
            return None
        case name:
            return _identity(name, azure)


def _identity(name: str, azure: AzureOptions) -> Any:
    import azure.identity as identity

    authority = {"authority": azure.authority_host} if azure.authority_host else {}
    if name == "workload-identity":
        return identity.WorkloadIdentityCredential(
            tenant_id=azure.tenant_id,
            client_id=azure.client_id,
            token_file_path=azure.federated_token_file,
            **authority,
        )
    if name == "managed-identity":
        return identity.ManagedIdentityCredential(client_id=azure.client_id)
    return identity.DefaultAzureCredential(exclude_managed_identity_credential=True, **authority)


def _fixed(kind: str, secret: str) -> dict[str, Any]:
    credential = {kind: secret.removeprefix("?"), "expires_at": None}
    return {"credential_provider": lambda: credential}


def _secret_of_connection_string(azure: AzureOptions) -> tuple[str, str]:
    fields = parse_connection_string(azure.connection_string or "")
    if "SharedAccessSignature" in fields:
        return "sas_token", fields["SharedAccessSignature"].removeprefix("?")
    if "AccountKey" in fields:
        return "access_key", fields["AccountKey"]
    raise AccessDenied("the connection string has neither an AccountKey nor a SharedAccessSignature")


def _default_provider(azure: AzureOptions) -> Callable[[], dict[str, Any]]:
    """DefaultAzureCredential as obstore's provider, asked once now so that a failure is ours to word."""
    from azure.core.exceptions import ClientAuthenticationError

    # It would print a paragraph for every credential that it tries; the error below is the answer.
    logging.getLogger("azure.identity").setLevel(logging.ERROR)
    credential = _identity("default", azure)

    def token() -> dict[str, Any]:
        fresh = credential.get_token(_SCOPE)
        return {"token": fresh.token, "expires_at": datetime.fromtimestamp(fresh.expires_on, UTC)}

    try:
        token()
    except ClientAuthenticationError as error:
        if flaw := half_identity(azure):
            raise flaw.error() from error
        raise AccessDenied(
            "no Azure credential was found: set AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_ACCOUNT_KEY or "
            "AZURE_STORAGE_CONNECTION_STRING, use workload identity, run `az login`, or ask for "
            "--azure-credential managed-identity or anonymous"
        ) from error
    return token

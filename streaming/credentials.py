"""Which Azure credential, and why.

Takes the Azure options, gives arguments for obstore's store or a credential for the Azure SDK. The first
that is present wins: SAS token, account key, connection string, workload identity, managed identity if it
is asked for, anonymous if it is asked for, else DefaultAzureCredential without its IMDS probe (which costs
seconds on a machine that has none). Reads no environment itself, and lets obstore read none.
"""

from __future__ import annotations

import base64
from typing import Any

from streaming.errors import AccessDenied
from streaming.options import AzureOptions, SourceOptions
from streaming.uri import account, parse_connection_string
from streaming.workload_identity import half_identity, unreadable_token


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


def identity_of(azure: AzureOptions) -> tuple[str, AzureOptions] | None:
    """The credential's name and options where it is an Entra identity, which has roles, rather than a secret or nobody.

    Raises:
        AccessDenied: As `choose`.
    """
    name = choose(azure)
    return (name, azure) if name in ("workload-identity", "managed-identity", "default") else None


def _without_secret(azure: AzureOptions) -> str:
    """What is left for "auto" where nothing is there whole: a pod's token that nobody can use is a mistake."""
    if azure.federated_token_file and (flaw := half_identity(azure)):
        raise flaw.error()
    return "default"


_MISSING = {
    "sas-token": "AZURE_STORAGE_SAS_TOKEN",
    "account-key": "AZURE_STORAGE_ACCOUNT_KEY",
    "connection-string": "AZURE_STORAGE_CONNECTION_STRING",
    "workload-identity": "one of AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID, AZURE_TENANT_ID",
}


def store_arguments(azure: AzureOptions) -> dict[str, Any]:
    """Keyword arguments that make obstore's AzureStore use the chosen credential and no other.

    That takes an environment without Azure's variables, too (`process.hide_variables`). A provider is used for
    fixed secrets, too, so that obstore keeps none in a config that it shows.

    Raises:
        AccessDenied: The credential is incomplete, or DefaultAzureCredential finds none.
    """
    match choose(azure):
        case "sas-token":
            return _fixed("sas_token", azure.sas_token or "")
        case "account-key":
            return _fixed("access_key", _checked_key(azure.account_key or "", "AZURE_STORAGE_ACCOUNT_KEY"))
        case "connection-string":
            return _fixed(*_secret_of_connection_string(azure))
        case "workload-identity":
            if flaw := unreadable_token(azure):
                raise flaw.error()
            names = ("client_id", "tenant_id", "federated_token_file", "authority_host")
            # The webhook closes the authority with a slash, and obstore puts one behind it.
            return {"config": {name: value.rstrip("/") for name in names if (value := getattr(azure, name))}}
        case "managed-identity":
            return {"config": {"client_id": azure.client_id} if azure.client_id else {}}
        case "anonymous":
            return {"config": {"skip_signature": True}}
        case _:
            from streaming.identity import default_provider

            return {"credential_provider": default_provider(azure)}


def sdk_credential(source: SourceOptions) -> Any:
    """The chosen credential as azure-storage-blob's clients take it (None is anonymous).

    Raises:
        AccessDenied: A part of the credential is missing.
    """
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

    azure = source.azure
    match choose(azure):
        case "sas-token":
            return AzureSasCredential((azure.sas_token or "").removeprefix("?"))
        case "account-key":
            key = _checked_key(azure.account_key or "", "AZURE_STORAGE_ACCOUNT_KEY")
            return AzureNamedKeyCredential(account(azure)[0], key)
        case "connection-string":
            kind, secret = _secret_of_connection_string(azure)
            if kind == "sas_token":
                return AzureSasCredential(secret)
            return AzureNamedKeyCredential(account(azure)[0], secret)
        case "anonymous":
            return None
        case name:
            from streaming.identity import Identity

            if name == "workload-identity" and (flaw := unreadable_token(azure)):
                raise flaw.error()
            return Identity(name, source)


def _fixed(kind: str, secret: str) -> dict[str, Any]:
    credential = {kind: secret.removeprefix("?"), "expires_at": None}
    return {"credential_provider": lambda: credential}


def _secret_of_connection_string(azure: AzureOptions) -> tuple[str, str]:
    fields = parse_connection_string(azure.connection_string or "")
    if "SharedAccessSignature" in fields:
        return "sas_token", fields["SharedAccessSignature"].removeprefix("?")
    if "AccountKey" in fields:
        return "access_key", _checked_key(fields["AccountKey"], "the connection string's AccountKey")
    raise AccessDenied("the connection string has neither an AccountKey nor a SharedAccessSignature")


def _checked_key(key: str, where: str) -> str:
    try:
        base64.b64decode(key, validate=True)
    except ValueError as error:  # which quotes no part of it
        raise AccessDenied(
            f"{where} is not valid base64: copy the whole key again, without spaces or line breaks"
        ) from error
    return key

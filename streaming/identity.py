"""Tokens of an Entra identity for the Azure SDK: the only file that knows azure-identity, which reads its own variables.

Takes a credential's name and the options, gives a credential as azure-storage-blob takes it, or a provider as obstore does. What
goes wrong is ours to word: azure-identity would print a paragraph, and the storage client would try a refusal again for minutes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import azure.identity
from azure.core.credentials import AccessToken
from azure.core.exceptions import AzureError, ClientAuthenticationError, ServiceResponseError
from azure.core.pipeline import PipelineResponse

from streaming.causes import TRANSIENT_STATUSES, Cause, code_of
from streaming.counters import FetchCounters
from streaming.errors import AccessDenied, SourceError
from streaming.exception_causes import cause_of_exception, detail_of_exception, is_untrusted, reasons
from streaming.options import AzureOptions, SourceOptions
from streaming.retrying import Retries
from streaming.token_errors import DEFAULT, MANAGED_IDENTITY, WORKLOAD_IDENTITY, TokenAnswer, token_error
from streaming.workload_identity import half_identity, unreadable_token

# Of all that DefaultAzureCredential keeps of a failure, its text.
_NO_CONNECTION = re.compile(r"Failed to (?:establish a new connection|resolve)[^\n]*\[Errno -?\d+\] ([^\n)]+)")
_SCOPE = "https://storage.azure.com/.default"

# It would print a paragraph for every credential that it tries; the error is the answer.
logging.getLogger("azure.identity").setLevel(logging.ERROR)


class Identity:
    """A credential whose tokens are asked for by the policy of every read: a refusal at once is the end, an outage is tried again.

    Args:
        name: The credential, by its name in `credentials`.
        source: Which identity, and how often and how long a token is asked for.

    Raises:
        AccessDenied: The options name no identity.
    """

    def __init__(self, name: str, source: SourceOptions):
        self._name = name
        self._azure = source.azure
        self._retries = Retries(source, FetchCounters())
        try:
            self._credential = _credential(name, source, self._judge)
        except ValueError as error:
            raise AccessDenied(
                f"{name} cannot be used: {str(error).partition('. ')[0]}: check AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_AUTHORITY_HOST"
            ) from error

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """A token that is good now; azure-identity keeps one until it is old.

        Raises:
            SourceError: There is none.
        """
        token: AccessToken = self._retries.call(self._ask, scopes, options)
        return token

    def _ask(self, scopes: tuple[str, ...], options: dict[str, Any]) -> AccessToken:
        try:
            token: AccessToken = self._credential.get_token(*scopes, **options)
        except SourceError:
            raise
        except (AzureError, OSError) as error:
            raise self._told(error) from error
        return token

    def _told(self, error: Exception) -> SourceError:
        for reason in reasons(error):
            if isinstance(reason, SourceError):
                return reason
        if self._name == WORKLOAD_IDENTITY and (flaw := unreadable_token(self._azure)):
            return flaw.error()
        if self._name == DEFAULT:
            return _none_found(self._azure, str(error))
        otherwise = Cause.RESET if isinstance(error, ServiceResponseError) else Cause.CONNECT
        answer = TokenAnswer(
            # What azure-identity could not read is no connection's fault.
            cause=cause_of_exception(error, None if isinstance(error, ClientAuthenticationError) else otherwise),
            detail=detail_of_exception(error),
            is_untrusted=is_untrusted(error),
        )
        return token_error(self._name, self._azure, answer)

    def _judge(self, response: PipelineResponse[Any, Any]) -> None:
        """Raise what an answer means that is no token, before azure-identity makes words of it."""
        status = response.http_response.status_code
        if status >= 400:
            answer = TokenAnswer(status, code_of(response.http_response.text()), TRANSIENT_STATUSES.get(status))
            raise token_error(self._name, self._azure, answer)


def default_provider(azure_options: AzureOptions) -> Callable[[], dict[str, Any]]:
    """DefaultAzureCredential as obstore's provider, asked once now so that a failure is ours to word.

    Raises:
        AccessDenied: It finds no credential, or one that is given no token.
    """
    credential = _default(azure_options)

    def token() -> dict[str, Any]:
        try:
            fresh = credential.get_token(_SCOPE)
        except ClientAuthenticationError as error:
            raise _none_found(azure_options, str(error)) from error
        return {"token": fresh.token, "expires_at": datetime.fromtimestamp(fresh.expires_on, UTC)}

    token()
    return token


def _credential(name: str, source: SourceOptions, judge: Callable[[PipelineResponse[Any, Any]], None]) -> Any:
    options = source.azure
    client: dict[str, Any] = {
        "raw_response_hook": judge,
        "connection_timeout": source.connect_timeout_s,
        "read_timeout": source.read_timeout_s,
        # Of a request that azure-identity repeats, nobody could count the attempts.
        "retry_total": 0,
    }
    if name == WORKLOAD_IDENTITY:
        # WorkloadIdentityCredential is the same, but for ten minutes after it was renewed the file is not read again.
        token_file = Path(options.federated_token_file or "")
        return azure.identity.ClientAssertionCredential(
            options.tenant_id or "", options.client_id or "", token_file.read_text, **_authority(options), **client
        )
    if name == MANAGED_IDENTITY:
        return azure.identity.ManagedIdentityCredential(client_id=options.client_id, **client)
    return _default(options)


def _default(options: AzureOptions) -> Any:
    return azure.identity.DefaultAzureCredential(exclude_managed_identity_credential=True, **_authority(options))


def _authority(options: AzureOptions) -> dict[str, str]:
    return {"authority": options.authority_host} if options.authority_host else {}


def _none_found(options: AzureOptions, text: str) -> SourceError:
    """What became of all the credentials that were tried: the first that asked somebody is the one that was meant."""
    if code := code_of(text):
        return token_error(DEFAULT, options, TokenAnswer(code=code))
    if unreached := _NO_CONNECTION.search(text):
        return token_error(DEFAULT, options, TokenAnswer(detail=unreached[1]))
    if flaw := half_identity(options):
        return flaw.error()
    return AccessDenied(
        "no Azure credential was found: set AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_ACCOUNT_KEY or "
        "AZURE_STORAGE_CONNECTION_STRING, use workload identity, run `az login`, or ask for "
        "--azure-credential managed-identity or anonymous"
    )

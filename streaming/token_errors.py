"""Why an identity got no token, in one line: who refused it or did not answer, and what to correct.

Takes what was answered, whichever library asked, and the Azure options; gives the error. Entra ID's own words are not quoted,
only its code: what they name is told from the options and from the pod's token.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import urlsplit

from streaming.causes import Cause
from streaming.errors import SourceError, TokenRefused, TokenUnavailable
from streaming.options import AzureOptions
from streaming.workload_identity import Claims, claims

WORKLOAD_IDENTITY, MANAGED_IDENTITY, DEFAULT = "workload-identity", "managed-identity", "default"
PUBLIC_CLOUD = "https://login.microsoftonline.com"
_GENERAL = {
    WORKLOAD_IDENTITY: "check that AZURE_CLIENT_ID and AZURE_TENANT_ID are its own, and that its federated credential names this "
    "cluster's issuer and this service account",
    MANAGED_IDENTITY: "check that this machine has a managed identity, and that AZURE_CLIENT_ID is its client id or unset",
}
_OF_OTHERS = "check the variables of the credential that was meant, such as AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET"
_NO_ENDPOINT = "check the machine's identity endpoint"
_NO_AUTHORITY = "check AZURE_AUTHORITY_HOST, and what lies between (DNS, network policy, firewall, proxy)"
_UNTRUSTED = (
    "have SSL_CERT_FILE name a bundle that holds its authority, and REQUESTS_CA_BUNDLE for push and host-staging"
)
_MATCH_CASE = (
    "make one for this service account, or run the pod with the one that is named (upper and lower case count)"
)


class TokenAnswer(NamedTuple):
    """What a request for a token met.

    `status` and `code` ("AADSTS700212", or "") are the answer's; without one, `cause` and `detail` are the connection's, the
    latter in the operating system's words. `cause` is None where another request would meet the same: `is_untrusted` says that
    it is the certificate's fault.
    """

    status: int | None = None
    code: str = ""
    cause: Cause | None = None
    detail: str = ""
    is_untrusted: bool = False


def token_error(name: str, azure: AzureOptions, answer: TokenAnswer) -> SourceError:
    """The error for a credential of this name that got no token."""
    if answer.cause is None and (answer.code or 400 <= (answer.status or 0) < 500):
        return _refused(name, azure, answer)
    what, remedy = _outage(name, answer)
    line = f"the identity got no token from {_who(name, azure)}: {what}: {remedy}"
    return TokenUnavailable(line, cause=answer.cause, status=answer.status)


def _outage(name: str, answer: TokenAnswer) -> tuple[str, str]:
    if answer.is_untrusted:
        return "its certificate is not trusted", _UNTRUSTED
    remedy = _NO_ENDPOINT if name == MANAGED_IDENTITY else _NO_AUTHORITY
    if answer.status is not None:
        return f"it answered {answer.status}", remedy
    unreadable = "its answer cannot be read"
    return answer.detail or (f"no answer ({answer.cause})" if answer.cause else unreadable), remedy


def _refused(name: str, azure: AzureOptions, answer: TokenAnswer) -> TokenRefused:
    said = " ".join(str(part) for part in (answer.status, answer.code) if part)
    found, remedy = _explained(answer.code, azure, claims(azure)) or ("", _GENERAL.get(name, _OF_OTHERS))
    line = ": ".join(filter(None, (f"{_who(name, azure)} refused the identity a token ({said})", found, remedy)))
    return TokenRefused(line, said, status=answer.status)


def _who(name: str, azure: AzureOptions) -> str:
    if name == MANAGED_IDENTITY:
        return "the machine's identity endpoint"
    return f"Entra ID at {urlsplit(azure.authority_host or PUBLIC_CLOUD).netloc.rpartition('@')[2]}"


def _explained(code: str, azure: AzureOptions, token: Claims) -> tuple[str, str] | None:
    """What a code of Entra ID means here, and what to do; None for a code that is not known."""
    client, tenant = azure.client_id, azure.tenant_id
    match code:
        case "AADSTS700212":
            return (
                f"the token's audience is {token.audience}, the federated credential of client {client} wants another "
                "(api://AzureADTokenExchange, unless it was made otherwise)",
                "give the pod's projected token that audience, as the workload identity webhook does",
            )
        case "AADSTS700211":
            return (
                f"the token's issuer is {token.issuer}, no federated credential of client {client} names it",
                "give the federated credential this cluster's issuer (az aks show --query oidcIssuerProfile.issuerUrl)",
            )
        case "AADSTS700213" | "AADSTS7002137" | "AADSTS7002138":
            found = f"the token's subject is {token.subject}, no federated credential of client {client} names it"
            return found, _MATCH_CASE
        case "AADSTS70021":
            found = f"no federated credential of client {client} has issuer {token.issuer}, subject {token.subject} and audience {token.audience}"
            return found, "correct the federated credential, or the client id on the service account"
        case "AADSTS700024":
            return _out_of_time(azure, token)
        case "AADSTS700016":
            return (
                f"client {client} is unknown in tenant {tenant}",
                "set AZURE_CLIENT_ID to the identity's client id (az identity show --query clientId), in a cluster by the service "
                "account's annotation azure.workload.identity/client-id",
            )
        case "AADSTS90002" | "AADSTS900023":
            return f"tenant {tenant} is unknown there", "check AZURE_TENANT_ID and AZURE_AUTHORITY_HOST"
    return None


def _out_of_time(azure: AzureOptions, token: Claims) -> tuple[str, str]:
    if token.ends is not None and token.ends <= datetime.now(UTC):
        found = f"the token in {azure.federated_token_file} ended at {token.ends:%Y-%m-%dT%H:%M:%SZ}"
        return found, "start the pod again, and look why its kubelet did not renew the file"
    return f"the token in {azure.federated_token_file} is not good at this time", "correct the node's clock (NTP)"

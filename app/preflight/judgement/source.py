"""The way to the checkpoint, from what each stage of it met; an error is told by whose fault it is.

Takes locations, credentials' names, errors and times. Knows no socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qs

from app.preflight.finding import SOURCE, Finding, failed, ok, refused, shown_bytes, skipped, warning
from streaming.errors import (
    AccessDenied,
    BlobNotFound,
    CheckpointError,
    RangesIgnored,
    SourceError,
    StreamingError,
    TokenUnavailable,
)
from streaming.options import AzureOptions
from streaming.workload_identity import half_identity

_IDENTITIES = ("workload-identity", "managed-identity", "default")
# Storage refuses requests that are dated further off, and SAS tokens begin or end too soon.
_SKEW_S = 180
_ROLE = (
    "give the identity the role Storage Blob Data Reader on the account or container; one that was assigned minutes "
    "ago may take ten to count"
)
_NETWORK = "the account's network rules may not allow this network: add it, or a private endpoint"
_ACTIONS = {
    "AuthorizationPermissionMismatch": _ROLE,
    "KeyBasedAuthenticationNotPermitted": "the account allows no keys: use workload identity",
    "PublicAccessNotPermitted": "the account allows nobody without a credential: give one",
    "NoAuthenticationInformation": "the container is not public: give a credential",
}
_BY_CREDENTIAL = {
    "sas-token": "the SAS token has expired, is cut off or lacks the permissions r and l: make another",
    "account-key": "the key is wrong or was rotated, or is another account's: copy it again",
    "connection-string": "its key or SAS token is wrong, expired or rotated: copy the connection string again",
    "anonymous": "the container is not public: give a credential",
}
_WHY = {
    "sas-token": "AZURE_STORAGE_SAS_TOKEN is set",
    "account-key": "AZURE_STORAGE_ACCOUNT_KEY is set",
    "connection-string": "AZURE_STORAGE_CONNECTION_STRING is set",
    "workload-identity": "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_FEDERATED_TOKEN_FILE are set",
    "default": "nothing else is set: a client secret, workload identity, `az login` and others are tried",
}


@dataclass(frozen=True)
class Answer:
    """A connection to the endpoint; `date_s` is its clock's Unix time, if it answered a request without a credential."""

    connect_s: float
    tls_version: str | None
    date_s: float | None
    local_date_s: float


def judge_dns(host: str, addresses: Sequence[str], elapsed_s: float) -> Finding:
    """The name means something."""
    return ok("dns", f"{host} is {', '.join(addresses[:4])}", addresses=list(addresses), elapsed_s=round(elapsed_s, 4))


def unknown_host(host: str, reason: str) -> Finding:
    """The name means nothing here."""
    remedy = "check the account's name; with a private endpoint, link its private DNS zone (privatelink.blob...) to this network"
    return failed("dns", SOURCE, f"{host} is unknown here: {reason}", remedy, host=host)


def judge_connection(address: str, answer: Answer) -> Finding:
    """Somebody is there."""
    verb = "accepts" if answer.date_s is None else "answers"
    tls = f" over {answer.tls_version}" if answer.tls_version else " without TLS"
    return ok(
        "connection",
        f"{address} {verb}{tls}, connected in {answer.connect_s * 1000:.0f} ms",
        connect_s=round(answer.connect_s, 4),
        tls_version=answer.tls_version,
    )


def not_connected(address: str, reason: str, *, is_certificate: bool) -> Finding:
    """Nobody is there, or nobody who can be trusted."""
    if is_certificate:
        remedy = "have SSL_CERT_FILE name a bundle that holds its authority (a proxy that opens TLS has its own)"
        return failed("connection", SOURCE, f"{address}: its certificate is not trusted: {reason}", remedy)
    remedy = "check the endpoint, the network policy, the firewall and the account's network rules"
    return failed("connection", SOURCE, f"{address}: no connection: {reason}", remedy)


def judge_clock(answer: Answer) -> Finding:
    """This clock against the service's, whose date has whole seconds."""
    if answer.date_s is None:
        return skipped("clock", "the source tells no date")
    skew_s = answer.local_date_s - answer.date_s
    if abs(skew_s) <= _SKEW_S:
        return ok("clock", f"within {max(1.0, abs(skew_s)):.0f} s of the source's", skew_s=round(skew_s, 1))
    word = "ahead of" if skew_s > 0 else "behind"
    return warning(
        "clock",
        f"this clock is {abs(skew_s):.0f} s {word} the source's",
        "correct the node's clock (NTP): signatures, SAS tokens and identity tokens are refused by their dates",
        skew_s=round(skew_s, 1),
    )


def judge_credential(name: str, azure: AzureOptions, now: datetime) -> Finding:
    """Which credential goes with every read, and why this one."""
    why = _WHY.get(name, "") if azure.credential == "auto" else "asked for by --azure-credential"
    detail = f"{name}: {why}"
    if name == "sas-token":
        expiry = sas_expiry(azure.sas_token or "")
        if expiry is not None:
            left_s = (expiry - now).total_seconds()
            if left_s <= 0:
                return failed(
                    "credential", SOURCE, f"the SAS token ended at {expiry}", "make another", expires_in_s=int(left_s)
                )
            return ok("credential", f"{detail}; it ends at {expiry}", credential=name, expires_in_s=int(left_s))
    if name == "default" and (flaw := half_identity(azure)):
        return warning("credential", f"{detail}; {flaw.found}", flaw.remedy, credential=name)
    return ok("credential", detail, credential=name)


def sas_expiry(token: str) -> datetime | None:
    """When a SAS token ends, if it says so (a stored access policy may instead)."""
    try:
        ends = datetime.fromisoformat(parse_qs(token.removeprefix("?"))["se"][0])
        return ends.replace(tzinfo=ends.tzinfo or UTC)
    except (KeyError, ValueError):
        return None


def judge_metadata(tensors: int, shards: int, weight_bytes: int, elapsed_s: float) -> Finding:
    """The checkpoint was described."""
    return ok(
        "metadata",
        f"{tensors} tensors in {shards} shards, {shown_bytes(weight_bytes)}, described in {elapsed_s:.2f} s",
        tensors=tensors,
        shards=shards,
        shards_bytes=weight_bytes,
        elapsed_s=round(elapsed_s, 4),
    )


def judge_throughput(nbytes: int, elapsed_s: float, lanes: int) -> Finding:
    """One ranged read: what a single connection gave."""
    rate = nbytes / max(elapsed_s, 1e-9)
    return ok(
        "throughput",
        f"{shown_bytes(nbytes)} in {elapsed_s:.3f} s, {rate / 1e6:.0f} MB/s in one request (serve has {lanes} at once)",
        range_bytes=nbytes,
        elapsed_s=round(elapsed_s, 4),
        throughput_bytes_per_s=int(rate),
    )


def unread(name: str, error: StreamingError, credential: str) -> Finding:
    """A read that failed, by whose fault it is; the credential is "" where the source takes none of Azure's."""
    if isinstance(error, CheckpointError):
        return failed(name, error.exit_code, str(error), "upload the checkpoint again, whole")
    if not isinstance(error, SourceError):
        return refused(name, error)
    if isinstance(error, AccessDenied):
        found, was_read, _ = str(error).rpartition(": the credential needs")
        if not was_read:  # no token, or no credential at all: told already
            return refused(name, error)
        return failed(name, SOURCE, found, _denied_action(error.said, credential), said=error.said)
    if isinstance(error, BlobNotFound | RangesIgnored | TokenUnavailable):
        return refused(name, error)
    remedy = "check that the service is up, and what lies between: network policy, firewall, proxy, private endpoint"
    return failed(name, SOURCE, str(error), remedy)


def _denied_action(said: str, credential: str) -> str:
    status, _, code = said.partition(" ")
    if code in _ACTIONS:
        return _ACTIONS[code]
    if credential in _IDENTITIES:
        if status == "401":
            return "the token is not accepted: check AZURE_TENANT_ID, the authority host and this node's clock"
        return f"{_NETWORK}; or {_ROLE}" if code == "AuthorizationFailure" else _ROLE
    if credential in _BY_CREDENTIAL:
        also = f"; or {_NETWORK}" if code == "AuthorizationFailure" else "; or this node's clock is wrong"
        return _BY_CREDENTIAL[credential] + also
    return "give the reader access, or use a source that this node may read"

"""Entra ID as a pod meets it: a token endpoint that believes what a cluster signed for a service account, and nothing else.

Takes registrations (a client's federated credentials), gives access tokens for storage, or Entra's own refusals: status, code
and words as they were seen in the public cloud. Its answers are signed, but no emulator checks that.
"""

from __future__ import annotations

import functools
import json
import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.private_ca import PrivateCa, https_server, send

AUDIENCE = "api://AzureADTokenExchange"
STORAGE = "https://storage.azure.com"
TENANT = "7b2f4c1e-0000-4000-8000-00000000c01d"
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_EXPECTED = {
    "grant_type": "client_credentials",
    "client_assertion_type": _ASSERTION_TYPE,
    "scope": f"{STORAGE}/.default",
}
# What a wrong one of those is told.
_MALFORMED = {
    "grant_type": (70003, "The app requested an unsupported grant type."),
    "client_assertion_type": (50027, "JWT token is invalid or malformed."),
    "scope": (70011, "The provided request must include a 'scope' input parameter. The scope is not valid."),
}


@functools.cache
def _key(_owner: str) -> rsa.RSAPrivateKey:
    """Whose key it is; making one takes a moment."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Cluster:
    """Who signs service accounts' tokens, under an issuer's URL."""

    def __init__(self, issuer: str = "https://oidc.example.net/cluster/"):
        self.issuer = issuer
        self._key = _key(issuer)

    def project(
        self, path: Path, subject: str, *, audience: str = AUDIENCE, lifetime_s: float = 3600, issuer: str = ""
    ) -> str:
        """Write a token where a pod would find it, at once and whole, as the kubelet does; gives the token."""
        now_s = int(time.time())
        _, _, namespace, account = subject.split(":")
        claims = {
            "aud": [audience],
            "exp": int(now_s + lifetime_s),
            "iat": int(now_s + min(0.0, lifetime_s - 3600)),
            "nbf": int(now_s + min(0.0, lifetime_s - 3600)),
            "iss": issuer or self.issuer,
            "sub": subject,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account}},
        }
        token = jwt.encode(claims, self._key, "RS256", headers={"kid": "cluster"})
        written = path.with_suffix(".new")
        written.write_text(token)
        written.rename(path)
        return token

    def claims(self, token: str) -> dict[str, object]:
        """What is in a token of its own; whether it is still good is not looked at.

        Raises:
            jwt.InvalidTokenError: Somebody else has signed it.
        """
        options = {"verify_exp": False, "verify_nbf": False, "verify_aud": False, "verify_iat": False}
        return dict(jwt.decode(token, self._key.public_key(), ["RS256"], options=options))


@dataclass(frozen=True)
class FederatedCredential:
    """Whom an application trusts."""

    issuer: str
    subject: str
    audience: str = AUDIENCE


@dataclass(frozen=True)
class Refusal(Exception):
    """An answer that is no token."""

    status: int
    error: str
    code: int
    words: str

    def body(self) -> bytes:
        """Entra's JSON."""
        now, trace_id, correlation_id = datetime.now(UTC), str(uuid.uuid4()), str(uuid.uuid4())
        when = f"{now:%Y-%m-%d %H:%M:%SZ}"
        description = (
            f"AADSTS{self.code}: {self.words} Trace ID: {trace_id} Correlation ID: {correlation_id} Timestamp: {when}"
        )
        said = {
            "error": self.error,
            "error_description": description,
            "error_codes": [self.code],
            "timestamp": when,
            "trace_id": trace_id,
            "correlation_id": correlation_id,
            "error_uri": f"https://login.microsoftonline.com/error?code={self.code}",
        }
        return json.dumps(said).encode()


@dataclass(frozen=True)
class Exchange:
    """One request for a token: what it brought, and what it got: a status, and a token or ""."""

    assertion: str
    status: int
    token: str = ""


@dataclass
class Entra:
    """A tenant's token endpoint.

    `clients` are the applications by client id, `lifetime_s` is that of its tokens, and `outages` are statuses that it answers
    first, one a request.
    """

    cluster: Cluster
    clients: dict[str, FederatedCredential] = field(default_factory=dict)
    lifetime_s: float = 86400
    outages: list[int] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def serving(self, ca: PrivateCa) -> Iterator[Entra]:
        """Answer for the length of a `with` block."""
        with https_server(ca, self._answer) as url:
            # As the webhook of azure-workload-identity writes AZURE_AUTHORITY_HOST.
            self.url = f"{url}/"
            yield self

    def variables(self, client_id: str, token_file: Path) -> dict[str, str]:
        """What that webhook puts into a pod."""
        return {
            "AZURE_CLIENT_ID": client_id,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_FEDERATED_TOKEN_FILE": str(token_file),
            "AZURE_AUTHORITY_HOST": self.url,
        }

    def secrets(self) -> list[str]:
        """Everything that nobody else may see: assertions and tokens, whole and by their signatures."""
        whole = [text for each in self.exchanges for text in (each.assertion, each.token) if text]
        return [*whole, *(signature for text in whole if (signature := text.rpartition(".")[2]))]

    def access_token(self, client_id: str) -> str:
        """A token for storage."""
        now_s = int(time.time())
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, client_id))
        claims = {
            "aud": STORAGE,
            "iss": f"https://sts.windows.net/{TENANT}/",
            "iat": now_s,
            "nbf": now_s,
            "exp": math.ceil(time.time() + self.lifetime_s),
            "appid": client_id,
            "appidacr": "2",
            "idtyp": "app",
            "oid": identity,
            "sub": identity,
            "tid": TENANT,
            "uti": uuid.uuid4().hex[:22],
            "ver": "1.0",
        }
        return jwt.encode(claims, _key("entra"), "RS256", headers={"kid": "entra"})

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        form = parse_qs(handler.rfile.read(int(handler.headers.get("Content-Length") or 0)).decode())
        asked = {name: values[0] for name, values in form.items()}
        assertion = asked.get("client_assertion", "")
        if self.outages:
            status = self.outages.pop(0)
            self.exchanges.append(Exchange(assertion, status))
            send(handler, status, b"<html>our services aren't available right now</html>", "text/html")
            return
        try:
            self._check(urlsplit(handler.path).path, asked)
        except Refusal as refusal:
            self.exchanges.append(Exchange(assertion, refusal.status))
            send(handler, refusal.status, refusal.body(), "application/json; charset=utf-8")
            return
        token = self.access_token(asked["client_id"])
        self.exchanges.append(Exchange(assertion, 200, token))
        lifetime_s = int(self.lifetime_s)
        given = {"token_type": "Bearer", "expires_in": lifetime_s, "ext_expires_in": lifetime_s, "access_token": token}
        send(handler, 200, json.dumps(given).encode(), "application/json; charset=utf-8")

    def _check(self, path: str, asked: dict[str, str]) -> None:
        _, tenant, rest = path.split("/", 2)
        if tenant != TENANT or rest != "oauth2/v2.0/token":
            raise Refusal(400, "invalid_request", 90002, f"Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.")  # fmt: skip
        for name, expected in _EXPECTED.items():
            if asked.get(name) != expected:
                raise Refusal(400, "invalid_request", *_MALFORMED[name])
        client_id = asked.get("client_id", "")
        trusted = self.clients.get(client_id)
        if trusted is None:
            raise Refusal(400, "unauthorized_client", 700016, f"Application with identifier '{client_id}' was not found in the directory 'Contoso'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant.")  # fmt: skip
        self._check_assertion(asked.get("client_assertion", ""), trusted)

    def _check_assertion(self, assertion: str, trusted: FederatedCredential) -> None:
        try:
            claims = self.cluster.claims(assertion)
        except jwt.InvalidSignatureError as error:
            raise Refusal(401, "invalid_client", 50013, "Assertion failed signature validation. [Reason - The key was not found.]") from error  # fmt: skip
        except jwt.InvalidTokenError as error:
            raise Refusal(401, "invalid_client", 50027, "JWT token is invalid or malformed.") from error
        (audience,) = claims["aud"]
        for code, name, found, expected in (
            (700211, "issuer", claims["iss"], trusted.issuer),
            (700213, "subject", claims["sub"], trusted.subject),
            (700212, "audience", audience, trusted.audience),
        ):
            if found != expected:
                raise Refusal(401, "invalid_client", code, f"No matching federated identity record found for presented assertion {name} '{found}'. Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation")  # fmt: skip
        if not claims["nbf"] <= time.time() < claims["exp"]:
            shown = [f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%S.%f}0Z" for at_s in (time.time(), claims["nbf"], claims["exp"])]  # fmt: skip
            raise Refusal(401, "invalid_client", 700024, f"Client assertion is not within its valid time range. Current time: {shown[0]}, assertion valid from {shown[1]}, expiry time of assertion {shown[2]}. Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials .")  # fmt: skip

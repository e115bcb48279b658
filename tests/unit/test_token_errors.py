"""streaming.token_errors and streaming.workload_identity: why there is no token, in one line."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.preflight.finding import refused
from streaming.causes import Cause
from streaming.errors import TokenRefused, TokenUnavailable
from streaming.options import AzureOptions
from streaming.token_errors import TokenAnswer, token_error
from streaming.workload_identity import Claims, claims

AZURE = AzureOptions(client_id="client", tenant_id="tenant", federated_token_file="/none")
ROOT = Path(__file__).parents[2]
WORKLOAD = "workload-identity"
CODES = ("700212", "700211", "700213", "7002137", "7002138", "70021", "700024", "700016", "90002", "900023")


def token(body: bytes) -> str:
    return f"e30.{base64.urlsafe_b64encode(body).decode().rstrip('=')}.c2lnbmF0dXJl"


def pod(tmp_path, **said) -> AzureOptions:
    """A pod whose token says this."""
    path = tmp_path / "token"
    path.write_text(token(json.dumps(said).encode()))
    return AzureOptions(client_id="client", tenant_id="tenant", federated_token_file=str(path))


@pytest.mark.parametrize("code", CODES)
def test_a_known_code_says_what_it_means(code):
    """Status and code, what is wrong and what to do, in that order, on one line."""
    error = token_error(WORKLOAD, AZURE, TokenAnswer(401, f"AADSTS{code}"))
    assert isinstance(error, TokenRefused)
    assert error.said == f"401 AADSTS{code}"
    who, found, remedy = str(error).split(": ")
    assert who == f"Entra ID at login.microsoftonline.com refused the identity a token (401 AADSTS{code})"
    assert found
    assert remedy
    assert "\n" not in str(error)


def test_the_document_has_every_code_that_is_told():
    """And no other: its table is where the line leads."""
    text = (ROOT / "docs" / "operating.md").read_text()
    table = text.partition("### What identity errors look like")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(?:AADSTS)?(\d{5,7})`", table)) == set(CODES)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (WORKLOAD, "its federated credential names this cluster's issuer"),
        ("managed-identity", "this machine has a managed identity"),
        ("default", "AZURE_CLIENT_SECRET"),
    ],
)
def test_an_unknown_code_is_told_by_who_asked(name, part):
    """Entra's code is there to look up, and what to check is that credential's."""
    error = token_error(name, AZURE, TokenAnswer(400, "AADSTS123"))
    assert isinstance(error, TokenRefused)
    assert "(400 AADSTS123): check" in str(error)
    assert part in str(error)


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (TokenAnswer(503, cause=Cause.UNAVAILABLE), ": it answered 503: check AZURE_AUTHORITY_HOST"),
        (TokenAnswer(429, cause=Cause.TOO_MANY), ": it answered 429: "),
        (TokenAnswer(503, "AADSTS90033", Cause.UNAVAILABLE), ": it answered 503: "),
        (TokenAnswer(302), ": it answered 302: "),
        (TokenAnswer(cause=Cause.REFUSED, detail="Connection refused"), ": Connection refused: "),
        (TokenAnswer(cause=Cause.TIMEOUT), ": no answer (timeout): "),
        (TokenAnswer(), ": its answer cannot be read: "),
        (TokenAnswer(is_untrusted=True, detail="whatever"), ": its certificate is not trusted: have SSL_CERT_FILE"),
    ],
)
def test_an_outage_is_no_refusal(answer, part):
    """Its cause is kept, by which it is tried again, and the storage account is not blamed."""
    error = token_error(WORKLOAD, AZURE, answer)
    assert isinstance(error, TokenUnavailable)
    assert error.cause is answer.cause
    assert f"got no token from Entra ID at login.microsoftonline.com{part}" in str(error)


def test_a_machines_own_endpoint_is_not_entra():
    """Neither an authority nor a federated credential has to do with it."""
    outage = token_error("managed-identity", AZURE, TokenAnswer(cause=Cause.REFUSED, detail="Connection refused"))
    assert "from the machine's identity endpoint: Connection refused: check the machine's" in str(outage)


def test_an_authority_is_shown_without_a_password():
    """Whatever somebody has put before its host."""
    azure = AzureOptions(authority_host="https://user:s3cret@login.example.net/")
    line = str(token_error(WORKLOAD, azure, TokenAnswer(400, "AADSTS123")))
    assert "Entra ID at login.example.net refused" in line
    assert "s3cret" not in line


def test_a_token_is_told_by_what_it_says(tmp_path):
    """Whose it is, for whom and until when; several audiences are all named."""
    said = claims(pod(tmp_path, iss="https://issuer/", sub="system:serviceaccount:n:a", aud=["x", "y"], exp=0))
    assert said[:3] == ("https://issuer/", "system:serviceaccount:n:a", "x and y")
    assert str(said.ends) == "1970-01-01 00:00:00+00:00"
    assert claims(pod(tmp_path, aud="x")).audience == "x"


@pytest.mark.parametrize(
    ("exp", "part"), [(0, "ended at 1970-01-01T00:00:00Z: start the pod"), (4e9, "correct the node's clock")]
)
def test_a_token_out_of_its_time_is_old_or_the_clock_is_wrong(tmp_path, exp, part):
    """What this node's clock says of it decides whom to suspect."""
    assert part in str(token_error(WORKLOAD, pod(tmp_path, exp=exp), TokenAnswer(401, "AADSTS700024")))


@given(
    content=st.one_of(
        st.binary(), st.binary().map(token).map(str.encode), st.text().map(lambda text: token(text.encode()).encode())
    )
)
def test_a_file_of_anything_is_no_error(tmp_path_factory, content):
    """A secret of another kind, half a token, JSON of another form: it says nothing, and is not repeated."""
    path = tmp_path_factory.mktemp("file") / "token"
    path.write_bytes(content)
    said = claims(AzureOptions(federated_token_file=str(path)))
    assert said == Claims() or said.issuer == said.subject == "unreadable"


@given(
    said=st.dictionaries(
        st.sampled_from(["iss", "sub", "aud", "exp"]), st.one_of(st.text(), st.floats(), st.lists(st.text()))
    )
)
def test_claims_of_anything_are_one_short_line(tmp_path_factory, said):
    """They are shown as they are, but for their length and their line breaks."""
    azure = pod(tmp_path_factory.mktemp("file"), **said)
    for code in CODES:
        line = str(token_error(WORKLOAD, azure, TokenAnswer(401, f"AADSTS{code}")))
        assert len(line.splitlines()) == 1
        assert len(line) < 1500


def test_how_often_it_was_tried_is_no_advice():
    """Preflight tells it with what was found."""
    tried = TokenUnavailable("it: no answer: check it (2 attempts in 0.1 s, the last: 503)")
    finding = refused("metadata", tried)
    assert (finding.detail, finding.action) == ("it: no answer (2 attempts in 0.1 s, the last: 503)", "check it")

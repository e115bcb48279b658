"""streaming.identity: what becomes of DefaultAzureCredential's paragraph."""

from __future__ import annotations

import pytest

from streaming.errors import TokenUnavailable
from streaming.identity import default_provider
from streaming.options import AzureOptions
from tools.ports import free_port


def test_a_closed_authority_is_no_missing_credential(monkeypatch, tmp_path):
    """Who asked somebody in vain had a credential: the connection is told, and not what else to set."""
    authority = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", f"https://{authority}")  # which its credentials read themselves
    monkeypatch.setenv("AZURE_CLIENT_ID", "client")
    monkeypatch.setenv("AZURE_TENANT_ID", "tenant")
    token_file = tmp_path / "token"
    token_file.write_text("s3cret")
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(token_file))
    monkeypatch.setattr("azure.core.pipeline.policies.RetryPolicy.sleep", lambda *_: None)
    with pytest.raises(TokenUnavailable, match=f"from Entra ID at {authority}: Connection refused: check") as raised:
        default_provider(AzureOptions(account_name="a", credential="default", authority_host=f"https://{authority}"))
    assert "s3cret" not in str(raised.value)

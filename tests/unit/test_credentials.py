"""streaming.credentials: the order of credentials, and what each of them becomes."""

from __future__ import annotations

import msgspec
import pytest

from streaming import credentials
from streaming.errors import AccessDenied
from streaming.options import AzureOptions, SourceOptions

KEY = "a2V5"
EVERYTHING = {
    "sas_token": "?sv=1&sig=s",
    "account_key": KEY,
    "connection_string": f"AccountName=a;AccountKey={KEY}",
    "federated_token_file": "/token",
    "client_id": "client",
    "tenant_id": "tenant",
}
ORDER = ("sas-token", "account-key", "connection-string", "workload-identity", "default")
FIELDS = ("sas_token", "account_key", "connection_string", "federated_token_file")


@pytest.mark.parametrize("missing", range(5))
def test_the_first_that_is_present_wins(missing):
    """SAS, key, connection string, workload identity, default: each wins when those before it are absent."""
    given = {name: value for name, value in EVERYTHING.items() if name not in FIELDS[:missing]}
    assert credentials.choose(AzureOptions(account_name="a", **given)) == ORDER[missing]


@pytest.mark.parametrize("name", [*ORDER, "managed-identity", "anonymous"])
def test_a_credential_asked_for_by_name_wins(name):
    """An explicit choice beats the order."""
    assert credentials.choose(AzureOptions(account_name="a", credential=name, **EVERYTHING)) == name


@pytest.mark.parametrize("name", ORDER[:-1])
def test_an_explicit_credential_that_is_missing_is_named(name):
    """Asking for what is not set says which variable to set."""
    with pytest.raises(AccessDenied, match="AZURE_"):
        credentials.choose(AzureOptions(account_name="a", credential=name))


@pytest.mark.parametrize(
    ("options", "credential"),
    [
        ({"sas_token": "?sv=1&sig=s"}, {"sas_token": "sv=1&sig=s", "expires_at": None}),
        ({"account_key": KEY}, {"access_key": KEY, "expires_at": None}),
        ({"connection_string": f"AccountName=a;AccountKey={KEY}"}, {"access_key": KEY, "expires_at": None}),
        (
            {"connection_string": "AccountName=a;SharedAccessSignature=sv=1&sig=s"},
            {"sas_token": "sv=1&sig=s", "expires_at": None},
        ),
    ],
)
def test_fixed_secrets_become_providers(options, credential):
    """A provider wins over whatever the environment holds, so that the choice is ours alone."""
    arguments = credentials.store_arguments(AzureOptions(account_name="a", **options))
    assert arguments["credential_provider"]() == credential


def test_anonymous_signs_nothing():
    """Public containers are read without a credential."""
    assert credentials.store_arguments(AzureOptions(credential="anonymous")) == {"config": {"skip_signature": True}}


def test_a_connection_string_without_a_secret_is_refused():
    """It names an account, but gives no way in."""
    with pytest.raises(AccessDenied, match="neither"):
        credentials.store_arguments(AzureOptions(connection_string="AccountName=a"))


def as_sdk_credential(azure):
    return credentials.sdk_credential(SourceOptions(azure=azure))


@pytest.mark.parametrize("key", ["s3cr3t!", "s3cr3t==a", "czNj cjN0", "czNjcjN", "schlüssel"])
@pytest.mark.parametrize("become", [credentials.store_arguments, as_sdk_credential])
def test_a_key_that_is_no_base64_is_told_as_such(key, become):
    """Before anybody is asked, by where it was given, and without a part of it: no role would help."""
    text = f"AccountName=a;AccountKey={key}"
    for given, where in (({"account_key": key}, "ACCOUNT_KEY"), ({"connection_string": text}, "AccountKey")):
        with pytest.raises(AccessDenied, match=f"{where} is not valid base64: copy the whole key") as raised:
            become(AzureOptions(account_name="a", **given))
        assert key.strip() not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_secrets_are_in_no_repr():
    """Options are logged; their secrets are not."""
    options = AzureOptions(account_name="a", **EVERYTHING)
    shown = repr(options) + str(options)
    assert "***" in shown
    assert not any(EVERYTHING[name] in shown for name in ("sas_token", "account_key", "connection_string"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=AzureOptions) == options


IDENTITY = {"client_id": "client", "tenant_id": "tenant", "federated_token_file": "/token"}


@pytest.mark.parametrize("missing", ["client_id", "tenant_id"])
def test_a_pods_token_without_its_identity_is_named_at_once(missing):
    """A token file whose variables are half there is no other credential's: what is missing is said, and what to do."""
    given = {name: value for name, value in IDENTITY.items() if name != missing}
    with pytest.raises(AccessDenied, match=f"half there.*AZURE_{missing.upper()} is not set.*label the pod template"):
        credentials.choose(AzureOptions(account_name="a", **given))


@pytest.mark.parametrize("given", [{"client_id": "c"}, {"client_id": "c", "tenant_id": "t"}, {}])
def test_variables_that_other_credentials_share_are_no_mistake_yet(given):
    """A client secret has them without a token file, a managed identity the client's id alone: Azure's library decides."""
    assert credentials.choose(AzureOptions(account_name="a", **given)) == "default"


@pytest.mark.parametrize("asked", ["default", "managed-identity", "anonymous"])
def test_half_an_identity_is_nothing_to_who_asks_for_another(asked):
    """A credential that was asked for by name does not care for the pod's token."""
    azure = AzureOptions(account_name="a", federated_token_file="/token", credential=asked)
    assert credentials.choose(azure) == asked


def test_a_token_file_that_is_missing_is_named(tmp_path):
    """What obstore would word as an unavailable source is the identity's fault; a readable file is none."""
    path = tmp_path / "token"
    azure = AzureOptions(account_name="a", **IDENTITY | {"federated_token_file": str(path)})
    with pytest.raises(AccessDenied, match=f"AZURE_FEDERATED_TOKEN_FILE={path} is not there: label"):
        credentials.store_arguments(azure)
    path.write_text("token")
    assert credentials.store_arguments(azure)["config"]["federated_token_file"] == str(path)


def test_the_authority_of_the_webhook_is_no_path(tmp_path):
    """It closes AZURE_AUTHORITY_HOST with a slash: the tenant follows it without another."""
    path = tmp_path / "token"
    path.write_text("token")
    given = IDENTITY | {"federated_token_file": str(path), "authority_host": "https://login.microsoftonline.com/"}
    config = credentials.store_arguments(AzureOptions(account_name="a", **given))["config"]
    assert config["authority_host"] == "https://login.microsoftonline.com"


def test_an_authority_without_tls_is_refused_by_azures_client(tmp_path):
    """One line instead of a ValueError: a token would be sent in the open."""
    path = tmp_path / "token"
    path.write_text("token")
    given = IDENTITY | {"federated_token_file": str(path), "authority_host": "http://127.0.0.1:9"}
    with pytest.raises(AccessDenied, match=r"'http://127.0.0.1:9' is an invalid authority.*: check AZURE_CLIENT_ID"):
        as_sdk_credential(AzureOptions(account_name="a", **given))

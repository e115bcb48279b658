"""What browsers are told about pages of other origins."""

import pytest

from app.api.cors import CorsOptions
from app.api.server import ApiOptions
from app.settings import load
from tests.unit.configurations import URI, message
from tests.unit.scripted_engine import serve

PAGE = "https://chat.example"
ASKING = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}


def server(**options):
    return serve(options=ApiOptions(api_keys=("key",), cors=CorsOptions(**options)))


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
async def test_an_allowed_page_may_ask_before_it_has_a_key(origins):
    """The browser's question is answered for the methods and headers that the page wants."""
    async with server(origins=origins).client() as client:
        response = await client.options("/v1/completions", headers=ASKING)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] in (PAGE, "*")
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "authorization" in response.headers["access-control-allow-headers"]


async def test_an_allowed_page_may_read_answers_and_errors(monkeypatch):
    """Refusals, and even our own faults, carry the header without which a page sees no status at all."""
    served = server(origins=(PAGE,))
    async with served.client(headers={"origin": PAGE}) as client:
        refused = await client.get("/v1/models")
        monkeypatch.setattr(served.service, "ready_model", lambda: 1 / 0)
        broken = await client.get("/v1/models", headers={"authorization": "Bearer key"})
    assert (refused.status_code, broken.status_code) == (401, 500)
    for response in (refused, broken):
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in response.headers["access-control-expose-headers"].lower()


async def test_another_page_may_not():
    """A page that is not listed is told nothing that would let it read."""
    async with server(origins=("https://other.example",)).client() as client:
        response = await client.options("/v1/completions", headers=ASKING)
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


async def test_without_origins_there_is_no_cors():
    """By default nothing is said, and OPTIONS is no method."""
    async with serve().client(headers={"origin": PAGE}) as client:
        assert (await client.options("/v1/completions", headers=ASKING)).status_code == 405
        assert "access-control-allow-origin" not in (await client.get("/v1/models")).headers


@pytest.mark.parametrize(
    "origins",
    [["--allowed-origins", "https://a", "https://b"], ["--allowed-origins", '["https://a", "https://b"]']],
    ids=["words", "vLLM's JSON"],
)
def test_origins_are_words_or_vllms_json(origins):
    """Both ways of writing the same."""
    server = load([URI, *origins, "--allow-credentials"], {}).server
    assert (server.allowed_origins, server.allow_credentials) == (("https://a", "https://b"), True)


@pytest.mark.parametrize("text", ["https://a,https://b", '["https://a","https://b"]'])
def test_a_variable_lists_origins_in_both_ways(text):
    """With commas, as other lists, or as JSON."""
    assert load([URI], {"COLDSTREAM_ALLOWED_ORIGINS": text}).server.allowed_origins == ("https://a", "https://b")


def test_a_list_that_is_no_json_is_refused():
    """Half a list is no origin."""
    assert "JSON list" in message(["serve", URI, "--allowed-origins", '["https://a"'])

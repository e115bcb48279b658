"""The OpenAPI document against a whole server: no answer that it does not describe, and no failure of ours."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.coldstream import Server

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


@pytest.fixture(scope="module")
def cases(short_server: Server) -> st.SearchStrategy[schemathesis.Case]:
    """Requests to every operation, such as the document allows and such as it does not."""
    document = httpx.get(short_server.url + "/openapi.json", timeout=30).json()
    assert "422" not in str(document)
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig())
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 8
    return st.one_of([each.as_strategy(generation_mode=mode) for each in operations for mode in MODES])


def check(case: schemathesis.Case, server: Server) -> None:
    if isinstance(case.body, dict) and "model" in case.body and case.body["model"].__class__ is str:
        case.body["model"] = "m"  # by chance nobody names the model
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=60)


@pytest.mark.parametrize("examples", [200, pytest.param(4000, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_every_answer_is_described(short_server, cases, examples):
    """Whatever is sent, the status is a documented one below 500 and the body is what the document says."""

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=examples == 200,
        phases=[Phase.generate, Phase.shrink],
    )
    @given(case=cases)
    def ask(case: schemathesis.Case) -> None:
        check(case, short_server)

    ask()
    assert short_server.complete("Hello", max_tokens=1)["usage"]["completion_tokens"] == 1

"""Requests as traces: what is kept, under which names, and what leads there."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import client_attributes, error_attributes, http_attributes, url_attributes

from app.lifecycle import State
from app.telemetry import names
from app.telemetry.export import TraceExport
from app.telemetry.spans import Trace
from app.telemetry.trace_options import trace_options
from app.telemetry.tracing import Tracing
from streaming.clock import boottime_s
from tests.unit.scripted_engine import Served, serve
from tests.unit.test_metrics import OPENMETRICS

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0{}"


class Kept(TraceExport):
    """Keeps what would be exported."""

    def __init__(self) -> None:
        super().__init__(lambda: pytest.fail("nothing is started"))
        self.traces: list[Trace] = []

    def put(self, trace: Trace) -> None:
        """Keep it."""
        self.traces.append(trace)


def traced(**environ: str) -> tuple[Served, Kept]:
    """A served toy whose traces are kept."""
    served, export = serve("ab"), Kept()
    for name in (names.FETCH_START, names.FETCH_END, names.STAGING_COMPLETE, names.LOAD_COMPLETE, names.READY):
        served.service.ledger.milestone(name, boottime_s())
    options = trace_options({"OTEL_TRACES_EXPORTER": "console", **environ}, "")
    tracing = Tracing(options, export, served.service.ledger)
    served.service.begin_trace = tracing.begin
    served.service.observers.append(tracing.observe)
    served.service.http_observers.append(tracing.observe_http)
    return served, export


async def ask(served: Served, **body: object) -> str:
    """One completion; gives the metrics that Prometheus would get after it."""
    async with served.client() as client:
        headers = {"traceparent": str(body.pop("traceparent", ""))}
        await client.post("/v1/completions", json={"model": "toy", "prompt": "abcd"} | body, headers=headers)
        return (await client.get("/metrics", headers={"accept": OPENMETRICS})).text


async def test_attributes_are_the_conventions_and_tokens_the_answers():
    """Every name is known to OpenTelemetry or ours; usage counts a prompt once however many choices it has."""
    served, export = traced()
    await ask(served, n=2, temperature=0.5, top_p=0.9, top_k=3, seed=7, max_tokens=9)
    _, request = export.traces
    server, inference = request.spans
    modules = (gen_ai_attributes, client_attributes, error_attributes, http_attributes, url_attributes)
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    assert {*server.attributes, *inference.attributes} - known == {names.REQUEST_ID}
    assert inference.name == "text_completion toy"
    assert inference.attributes[names.INPUT_TOKENS] == 5
    assert inference.attributes[names.CACHED_INPUT_TOKENS] == 2
    assert inference.attributes[names.OUTPUT_TOKENS] == 6
    assert inference.attributes[names.FINISH_REASONS] == ("stop", "stop")
    assert inference.attributes[names.REQUEST_CHOICES] == 2
    assert inference.attributes[names.REQUEST_SEED] == 7


async def test_a_wait_for_readiness_is_seen_in_the_trace():
    """The request's span begins with its arrival and has the moment at which the server was ready."""
    served, export = traced()
    served.service.lifecycle.advance(State.WARMING, "")
    async with served.client(headers={"x-coldstream-wait": "60"}) as client:
        answer = asyncio.create_task(client.post("/v1/completions", json={"model": "toy", "prompt": "abcd"}))
        async with asyncio.timeout(30):
            while not served.service.waiting_room.held:  # noqa: ASYNC110 - the room has no event for tests
                await asyncio.sleep(0.002)
        served.service.lifecycle.advance(State.READY, "")
        await answer
    (held,) = [span for trace in export.traces for span in trace.spans if span.name == "text_completion toy"]
    await ask(served)
    late = export.traces[-1].spans[1]
    assert [event.name for event in held.events if event.name != names.PREFILL_EVENT] == ["queue", "ready", "decode"]
    assert held.events[0].at_ns == held.start_ns < held.events[1].at_ns
    assert names.READY_EVENT not in [event.name for event in late.events]


async def test_only_the_request_with_the_first_token_is_linked_to_the_startup():
    """The startup gets its last span with it, and no other."""
    served, export = traced()
    await ask(served)
    await ask(served)
    first_token, first, second = export.traces
    assert [span.name for span in first_token.spans] == ["first_answer"]
    assert first_token.spans[0].links[0].trace_id == first.trace_id
    assert first.spans[0].links[0].trace_id == first_token.trace_id
    assert second.spans[0].links == second.spans[1].links == ()


@pytest.mark.parametrize(("flag", "is_kept"), [(1, True), (0, False)])
async def test_the_callers_decision_holds_for_trace_and_exemplar(flag, is_kept):
    """A caller that does not sample gets neither a trace nor an exemplar that leads to none."""
    served, export = traced()
    await ask(served)
    text = await ask(served, traceparent=PARENT.format(flag))
    kept = [trace.remote_parent for trace in export.traces if trace.remote_parent and not trace.always]
    assert [parent.span_id for parent in kept] == (["00f067aa0ba902b7"] if is_kept else [])
    assert ('trace_id="4bf92f3577b34da6a3ce929d0e0e4736"' in text) is is_kept


async def test_a_ratio_of_zero_leaves_the_startup_alone():
    """Its own spans are always kept."""
    served, export = traced(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0")
    text = await ask(served)
    assert [(trace.spans[0].name, trace.always) for trace in export.traces] == [("first_answer", True)]
    assert "trace_id=" not in text

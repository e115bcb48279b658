"""Whether a trace will be kept, told before there is a span: exemplars must not lead to traces that are thrown away.

The same decision as the OpenTelemetry SDK's in the exporter, by OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

# A trace's id and what its remote parent decided, if it has one.
Sampler = Callable[[str, bool | None], bool]

_PARENT_BASED = "parentbased_"


def sampler(name: str, argument: str) -> Sampler:
    """The sampler of this name; an unknown one is the SDK's default, parentbased_always_on."""
    decide = _root(name.lower().removeprefix(_PARENT_BASED), argument)
    if name.lower() in ("always_on", "always_off", "traceidratio"):
        return lambda trace_id, _: decide(trace_id)
    return lambda trace_id, parent: decide(trace_id) if parent is None else parent


def _root(name: str, argument: str) -> Callable[[str], bool]:
    if name == "always_off":
        return lambda _: False
    if name == "traceidratio":
        bound = round(_ratio(argument) * (1 << 64))
        return lambda trace_id: int(trace_id[16:], 16) < bound
    return lambda _: True


def _ratio(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0

"""Panels, rows and a dashboard as Grafana's JSON has them.

Takes queries and titles, gives plain JSON values, laid out from left to right. Without ids: Grafana gives its own.
Knows no metric.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_SCHEMA_VERSION = 41  # of Grafana 12; older ones read what they know
_COLUMNS = 24
_LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True}
_NEWEST = {"reduceOptions": {"calcs": ["lastNotNull"]}}
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """PromQL and what its series are called. `instant` is one value as of now, `exemplars` lead to traces."""

    expression: str
    legend: str
    instant: bool = False
    exemplars: bool = False


def series(title: str, queries: Sequence[Query], unit: str, *, width: int = 6) -> Json:
    """Lines over time."""
    custom = {"fillOpacity": 10, "showPoints": "never"}
    options = {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": _LEGEND}
    return _panel("timeseries", title, queries, width, unit=unit, custom=custom, options=options)


def stats(title: str, queries: Sequence[Query], unit: str, *, width: int = 6) -> Json:
    """Numbers as of now."""
    return _panel(
        "stat", title, queries, width, unit=unit, options=_NEWEST | {"textMode": "value_and_name", "graphMode": "none"}
    )


def bars(title: str, queries: Sequence[Query], unit: str, *, width: int = 6) -> Json:
    """Numbers as of now, as long as they are large."""
    return _panel("bargauge", title, queries, width, unit=unit, options=_NEWEST | {"orientation": "horizontal"})


def states(title: str, query: Query, names: Mapping[int, tuple[str, str]], *, width: int, height: int) -> Json:
    """A number over time as names and colors."""
    texts = {str(value): {"text": text, "color": color, "index": value} for value, (text, color) in names.items()}
    panel = _panel(
        "state-timeline", title, [query], width, height=height, options={"showValue": "auto", "legend": _LEGEND}
    )
    panel["fieldConfig"]["defaults"]["mappings"] = [{"type": "value", "options": texts}]
    return panel


def waterfall(title: str, starts: Query, durations: Query, *, label: str, width: int = 24) -> Json:
    """A bar per value of `label`, from its start and as long as it took: stacked on a start that cannot be seen."""
    options = {"orientation": "horizontal", "stacking": "normal", "xField": label, "legend": {"showLegend": False}}
    panel = _panel("barchart", title, [starts, durations], width, height=14, unit="s", options=options)
    for target in panel["targets"]:
        target["format"] = "table"
    columns = {"Value #A": "start", "Value #B": "duration"}
    wanted = {"pattern": "^(start|duration|" + label + ")$"}
    panel["transformations"] = [
        {"id": "joinByField", "options": {"byField": label, "mode": "outer"}},
        {"id": "organize", "options": {"renameByName": columns}},
        {"id": "filterFieldsByName", "options": {"include": wanted}},
        {"id": "sortBy", "options": {"sort": [{"field": "start"}]}},
    ]
    unseen = [{"id": "color", "value": {"mode": "fixed", "fixedColor": "transparent"}}]
    panel["fieldConfig"]["overrides"] = [{"matcher": {"id": "byName", "options": "start"}, "properties": unseen}]
    return panel


def row(title: str, panels: Sequence[Json]) -> list[Json]:
    """A row's heading and its panels; their places are not known yet."""
    heading = {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": _COLUMNS, "h": 1}}
    return [heading, *panels]


def dashboard(rows: Sequence[Sequence[Json]], *, instances_of: str) -> Json:
    """Everything in its place; instances are those that have the metric `instances_of`."""
    instances = f"label_values({instances_of}, instance)"
    everything = {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return {
        "title": "Coldstream",
        "uid": "coldstream",
        "tags": ["coldstream"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("instance", "Instances", instances) | everything,
                _variable("start", "Start of", instances),
            ]
        },
        "annotations": {"list": []},
        "panels": _placed([panel for each in rows for panel in each]),
    }


def _variable(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
    }


def _panel(
    kind: str,
    title: str,
    queries: Sequence[Query],
    width: int,
    *,
    height: int = 8,
    unit: str = "none",
    custom: Json | None = None,
    options: Json,
) -> Json:
    return {
        "type": kind,
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom or {}}, "overrides": []},
        "options": options,
        "targets": [_target(letter, query) for letter, query in zip(string.ascii_uppercase, queries, strict=False)],
    }


def _target(letter: str, query: Query) -> Json:
    return {
        "refId": letter,
        "datasource": _SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "instant": query.instant,
        "range": not query.instant,
        "exemplar": query.exemplars,
    }


def _placed(panels: Sequence[Json]) -> list[Json]:
    """From left to right, and on a new line where there is no room."""
    placed, x, y, line_height = [], 0, 0, 0
    for panel in panels:
        size = panel["gridPos"]
        if x + size["w"] > _COLUMNS:
            x, y, line_height = 0, y + line_height, 0
        placed.append(panel | {"gridPos": size | {"x": x, "y": y}})
        x, line_height = x + size["w"], max(line_height, size["h"])
    return placed

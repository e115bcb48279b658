"""The Grafana dashboard: it is today's, shows every metric, and asks for none that does not exist."""

from __future__ import annotations

import json
import re

import pytest

from app.telemetry import names
from tools.grafana_dashboard import PATH, made

DASHBOARD = json.loads(PATH.read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
METRICS = {metric.name: metric for metric in names.METRICS}
# prometheus-client's own, of the server process.
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"}


def used(expression: str) -> set[str]:
    """The families that an expression reads."""
    found = re.findall(r"\b(?:coldstream|gen_ai_server|http_server|process)_\w+\b", expression)
    return {re.sub("_(bucket|count|sum)$", "", name) for name in found}


def test_the_file_is_todays():
    """`python -m tools.grafana_dashboard` would change nothing."""
    assert PATH.read_text(encoding="utf-8") == made()


@pytest.mark.parametrize(("title", "target"), TARGETS)
def test_expressions_name_metrics_and_labels_that_exist(title, target):
    """Selectors, groups and legends alike."""
    families = used(target["expr"])
    assert families
    assert families <= METRICS.keys() | PROCESS
    known = {"instance", "le"}.union(*(METRICS[name].labels for name in families & METRICS.keys()))
    named = re.findall(r'(\w+)\s*(?:=~|!=|!~|=)\s*"', target["expr"]) + re.findall(r"{{(\w+)}}", target["legendFormat"])
    for group in re.findall(r"by \(([^)]*)\)", target["expr"]):
        named += re.findall(r"\w+", group)
    assert set(named) <= known


def test_every_metric_is_shown():
    """Whatever is measured has a place."""
    assert set().union(*(used(target["expr"]) for _, target in TARGETS)) == METRICS.keys() | PROCESS


def test_panels_do_not_overlap():
    """Each has its own rectangle of the grid, none reaches over its edge."""
    taken = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23


def test_it_belongs_to_no_grafana_and_no_data_source():
    """No ids, and every query goes where the variable says."""
    assert "id" not in DASHBOARD
    assert not [panel for panel in DASHBOARD["panels"] if "id" in panel]
    assert {each["datasource"]["uid"] for _, each in TARGETS} == {"${datasource}"}
    (source,) = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource"]
    assert source["name"] == "datasource"


def test_quantiles_over_time_lead_to_traces():
    """Exemplars are asked for wherever a request's latency is drawn."""
    latencies = [each for _, each in TARGETS if "histogram_quantile" in each["expr"] and not each["instant"]]
    assert len(latencies) > 9
    assert all(each["exemplar"] for each in latencies)

"""What KEDA's queries ask for, computed by a real Prometheus from metrics as the server and kube-state-metrics export them.

Takes the ScaledObject of the component; the autoscaler's rule is Kubernetes' own: the larger of both answers over
their targets, rounded up, but as many as there are where that is within 10 %, between least and most.
"""

from __future__ import annotations

import json
import math
import re
import subprocess

import pytest

from app.lifecycle import State
from app.telemetry import names
from tests.manifests import named, rendered
from tools.debian_packages import ensure_program

SPEC = named("base+keda", "ScaledObject", "coldstream")["spec"]
DEMAND, UNREADY = SPEC["triggers"]
OTHERS = ('coldstream_state{namespace="elsewhere",pod="x",state="loading"}', 1)
# Pods that export nothing: without a node, while the image comes, between two crashes.
SILENT = ("pending", "pulling", "crashing")
# Of the controller manager, where nobody has set another.
TOLERANCE = 0.1


def of_deployment(metric, namespace="coldstream"):
    """The series that kube-state-metrics has for the Deployment."""
    return f'kube_deployment_{metric}{{namespace="{namespace}",deployment="coldstream"}}'


def series(*pods, running=0, waiting=0, replicas=None, of="coldstream"):
    """What Prometheus holds of pods in these states, of a Deployment that asks for `replicas`; sequences are the first pod's."""
    found = [OTHERS]
    if replicas is not None:
        found += [
            (of_deployment("spec_replicas", of), replicas),
            # A pod that is being deleted is none of them.
            (of_deployment("status_replicas", of), len(pods) - pods.count("draining")),
            (of_deployment("status_replicas_ready", of), pods.count("ready")),
        ]
    for number, now in enumerate(pods):
        if now in SILENT:
            continue
        pod = f'namespace="{of}",pod="coldstream-{number}"'
        found += [(f'coldstream_state{{{pod},state="{state}"}}', int(state == now)) for state in State]
        found.append((f"coldstream_requests_running{{{pod}}}", 0 if number else running))
        found.append((f"coldstream_requests_waiting{{{pod}}}", 0 if number else waiting))
    return found


def answers(found, expected, folder):
    """What promtool has against the two queries' answers to these series; nothing if they are as expected.

    Args:
        found: Series and their values.
        expected: The answer of each query; None is no answer at all.
        folder: Where promtool's file goes.
    """
    tests = [
        {"expr": trigger["metadata"]["query"], "eval_time": "1m"}
        | ({} if value is None else {"exp_samples": [{"labels": "{}", "value": value}]})
        for trigger, value in zip((DEMAND, UNREADY), expected, strict=True)
    ]
    inputs = [{"series": name, "values": f"{value}+0x8"} for name, value in found]
    test = {"interval": "15s", "input_series": inputs, "promql_expr_test": tests}
    path = folder / "test.yml"
    path.write_text(json.dumps({"rule_files": [], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run(
        [ensure_program("promtool", "prometheus"), "test", "rules", path], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr if done.returncode else ""


def wanted(found, values):
    """Replicas that follow from both answers, where there are those of the series."""
    there = dict(found)[of_deployment("status_replicas")]
    proposals = []
    for value, trigger in zip(values, (DEMAND, UNREADY), strict=True):
        asked = value / float(trigger["metadata"]["threshold"])
        proposals.append(there if abs(asked / there - 1) <= TOLERANCE else math.ceil(asked))
    return min(max(*proposals, SPEC["minReplicaCount"]), SPEC["maxReplicaCount"])


@pytest.mark.parametrize(
    ("found", "expected", "replicas"),
    [
        pytest.param(series("ready", "ready", replicas=2), (0, 0), 1, id="idle: as few as allowed"),
        pytest.param(series("ready", replicas=1, running=64), (1, 0), 1, id="one is enough"),
        pytest.param(series("ready", replicas=1, running=70), (1.09375, 0), 1, id="a tenth more is no other number"),
        pytest.param(series("ready", replicas=1, running=72), (1.125, 0), 2, id="an eighth is"),
        pytest.param(series("ready", replicas=1, running=64, waiting=8), (2, 0), 2, id="a backlog: one more"),
        pytest.param(series("ready", "ready", replicas=2, running=128), (2, 0), 2, id="no backlog: none less"),
        pytest.param(
            series("ready", "loading", "starting", replicas=3, running=64, waiting=8), (2, 3), 3, id="no more for those"
        ),
        pytest.param(series("ready", replicas=3), (0, 3), 3, id="none goes before it is made"),
        pytest.param(series("ready", "pending", "pending", replicas=3), (0, 3), 3, id="nor while it has no node"),
        pytest.param(series("ready", "ready", "pulling", replicas=3), (0, 3), 3, id="nor while its image comes"),
        pytest.param(series("ready", "ready", "loading", replicas=3), (0, 3), 3, id="nor while it loads"),
        pytest.param(series("ready", "warming", replicas=2), (0, 2), 2, id="nor while an engine is replaced"),
        pytest.param(series("ready", "ready", "crashing", replicas=3), (0, 3), 3, id="nor if it never will be ready"),
        pytest.param(series("ready", "ready", "ready", replicas=3), (0, 0), 1, id="all are ready: they may go"),
        pytest.param(series("ready", "draining", replicas=1), (0, 0), 1, id="what leaves does not load"),
        pytest.param(series("ready", "draining", "pulling", replicas=2), (0, 2), 2, id="a rollout"),
        # With a surge there is a pod more than the Deployment's number, which must not make that number grow.
        pytest.param(series("ready", "ready", "pulling", replicas=2), (0, 2), 2, id="a surge is no demand"),
        pytest.param(series("ready", "ready", "ready", replicas=2), (0, 0), 1, id="the end of a surge"),
        pytest.param(series(*["ready"] * 4, "loading", replicas=4), (0, 4), 4, id="a surge of the most"),
        pytest.param(series("ready", replicas=1, waiting=800), (100, 0), 4, id="never more than the most"),
    ],
)
def test_replicas_follow_demand_and_never_fall_while_one_is_not_ready(found, expected, replicas, tmp_path):
    """Whatever the states of the pods, and whatever happens in other namespaces."""
    assert answers(found, expected, tmp_path) == ""
    assert wanted(found, expected) == replicas


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param([OTHERS], (None, None), id="nothing is scraped"),
        pytest.param(series("pulling", replicas=1), (None, 1), id="a first pod that does not run yet"),
        pytest.param(series("ready", "ready"), (0, None), id="without kube-state-metrics"),
        pytest.param(series("ready", replicas=1, of="elsewhere"), (None, None), id="another namespace's"),
    ],
)
def test_no_answer_is_no_number(found, expected, tmp_path):
    """Where Prometheus lacks a metric, KEDA is told to take that for an error, and an autoscaler then scales nothing in."""
    assert answers(found, expected, tmp_path) == ""
    assert [trigger["metadata"]["ignoreNullValues"] for trigger in (DEMAND, UNREADY)] == ["false", "false"]


def test_another_answer_would_be_noticed(tmp_path):
    """Promtool does compare."""
    assert "exp" in answers(series("ready", replicas=1), (1, 0), tmp_path)


def test_queries_name_metrics_that_exist():
    """And the Deployment and namespace that an overlay has."""
    queries = " ".join(trigger["metadata"]["query"] for trigger in (DEMAND, UNREADY))
    assert set(re.findall(r"coldstream_\w+", queries)) <= {metric.name for metric in names.METRICS}
    assert set(re.findall(r'deployment="([^"]+)"', queries)) == {"coldstream"}
    assert set(re.findall(r'namespace="([^"]+)"', queries)) == {"coldstream"}
    assert "  name: coldstream\n  namespace: coldstream\n" in rendered("overlays/aks-a100")


def test_an_idle_number_is_kept_for_longer_than_a_pod_takes_to_be_seen():
    """Until a new pod is scraped, what was wanted before decides; and one pod goes at a time."""
    behavior = SPEC["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 600
    assert [policy["value"] for policy in behavior["scaleDown"]["policies"]] == [1]
    assert SPEC["cooldownPeriod"] >= 600

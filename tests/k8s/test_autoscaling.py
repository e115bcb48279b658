"""What KEDA's queries ask for, computed by a real Prometheus from metrics as the server exports them.

Takes the ScaledObject of the component; the autoscaler's rule is Kubernetes' own: the larger of both answers over
their targets, rounded up, between least and most.
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
from tools.prometheus_binary import ensure_promtool

SPEC = named("base+keda", "ScaledObject", "coldstream")["spec"]
DEMAND, LOADING = SPEC["triggers"]
OTHERS = ('coldstream_state{namespace="elsewhere",pod="x",state="loading"}', 1)


def series(*states, running=0, waiting=0, replicas=None, of="coldstream"):
    """What Prometheus holds: a pod for every state, of a Deployment with `replicas`; sequences are the first pod's."""
    found = [OTHERS]
    if replicas is not None:
        found.append((f'kube_deployment_spec_replicas{{namespace="{of}",deployment="coldstream"}}', replicas))
    for number, now in enumerate(states):
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
        for trigger, value in zip((DEMAND, LOADING), expected, strict=True)
    ]
    inputs = [{"series": name, "values": f"{value}+0x8"} for name, value in found]
    test = {"interval": "15s", "input_series": inputs, "promql_expr_test": tests}
    path = folder / "test.yml"
    path.write_text(json.dumps({"rule_files": [], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run([ensure_promtool(), "test", "rules", path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def wanted(*values):
    """Replicas that follow from both answers."""
    targets = (float(trigger["metadata"]["threshold"]) for trigger in (DEMAND, LOADING))
    most = max(math.ceil(value / target) for value, target in zip(values, targets, strict=True))
    return min(max(most, SPEC["minReplicaCount"]), SPEC["maxReplicaCount"])


@pytest.mark.parametrize(
    ("found", "expected", "replicas"),
    [
        pytest.param(series("ready", "ready", replicas=2), (0, 0), 1, id="idle: as few as allowed"),
        pytest.param(series("ready", replicas=1, running=64), (1, 0), 1, id="one is enough"),
        pytest.param(series("ready", replicas=1, running=64, waiting=8), (2, 0), 2, id="a backlog: one more"),
        pytest.param(series("ready", "ready", replicas=2, running=128), (2, 0), 2, id="no backlog: none less"),
        pytest.param(
            series("ready", "loading", "starting", replicas=3, running=64, waiting=8), (2, 3), 3, id="no more for those"
        ),
        pytest.param(series("ready", "ready", "loading", replicas=3), (0, 3), 3, id="none goes while one loads"),
        pytest.param(series("ready", "warming", replicas=2), (0, 2), 2, id="nor while an engine is replaced"),
        pytest.param(series("ready", "draining", replicas=1), (0, 0), 1, id="what leaves does not load"),
        # A rollout with a surge has a pod more than the Deployment's number, which must not make that number grow.
        pytest.param(series("ready", "ready", "loading", replicas=2), (0, 2), 2, id="a rollout is no demand"),
        pytest.param(series("ready", replicas=1, waiting=800), (100, 0), 4, id="never more than the most"),
    ],
)
def test_replicas_follow_demand_and_never_fall_while_one_loads(found, expected, replicas, tmp_path):
    """Whatever the states of the pods, and whatever happens in other namespaces."""
    assert answers(found, expected, tmp_path) == ""
    assert wanted(*expected) == replicas


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param([OTHERS], (None, None), id="nothing is scraped"),
        pytest.param(series("ready", "ready"), (0, None), id="without kube-state-metrics"),
        pytest.param(series("ready", replicas=1, of="elsewhere"), (None, None), id="another namespace's"),
    ],
)
def test_no_answer_is_no_number(found, expected, tmp_path):
    """Where Prometheus lacks a metric, KEDA is told to take that for an error, and an autoscaler then scales nothing in."""
    assert answers(found, expected, tmp_path) == ""
    assert [trigger["metadata"]["ignoreNullValues"] for trigger in (DEMAND, LOADING)] == ["false", "false"]


def test_another_answer_would_be_noticed(tmp_path):
    """Promtool does compare."""
    assert "exp" in answers(series("ready", replicas=1), (1, 0), tmp_path)


def test_queries_name_metrics_and_states_that_exist():
    """And the Deployment and namespace that an overlay has."""
    queries = " ".join(trigger["metadata"]["query"] for trigger in (DEMAND, LOADING))
    assert set(re.findall(r"coldstream_\w+", queries)) <= {metric.name for metric in names.METRICS}
    (states,) = re.findall(r'state=~"([^"]+)"', queries)
    assert set(states.split("|")) == {*State} - {State.READY, State.DRAINING, State.FAILED}
    assert set(re.findall(r'namespace="([^"]+)"', queries)) == {"coldstream"}
    assert "  name: coldstream\n  namespace: coldstream\n" in rendered("overlays/aks-a100")


def test_an_idle_number_is_kept_for_longer_than_a_pod_takes_to_be_seen():
    """Until a new pod is scraped, what was wanted before decides; and one pod goes at a time."""
    behavior = SPEC["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 600
    assert [policy["value"] for policy in behavior["scaleDown"]["policies"]] == [1]
    assert SPEC["cooldownPeriod"] >= 600

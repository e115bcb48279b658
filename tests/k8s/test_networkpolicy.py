"""What the policy of `components/networkpolicy` lets through: what pods on AKS need, and no node's metadata service."""

from __future__ import annotations

from streaming.options import AzureOptions
from streaming.uri import account
from tests.manifests import OWN_OVERLAYS, named, pods

SPEC = named(OWN_OVERLAYS[0], "NetworkPolicy", "coldstream")["spec"]


def anywhere(rule):
    """Whether a rule is for every address."""
    cidrs = {peer["ipBlock"]["cidr"] for peer in rule.get("to", []) if "ipBlock" in peer}
    return "to" not in rule or cidrs == {"0.0.0.0/0", "::/0"}


def test_it_is_for_every_pod_of_ours():
    """Server and Jobs."""
    for _, template in pods(OWN_OVERLAYS[0]):
        assert SPEC["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_out_of_the_cluster_go_names_and_https():
    """By port alone: the metadata service is at port 80, and an exception to another port would only look like a guard."""
    ports = {port["port"] for rule in SPEC["egress"] if anywhere(rule) for port in rule["ports"]}
    assert ports == {53, 443}
    assert not any("except" in peer.get("ipBlock", {}) for rule in SPEC["egress"] for peer in rule.get("to", []))
    _, endpoint = account(AzureOptions(account_name="account"))
    assert endpoint.startswith("https://")


def test_every_pod_of_the_cluster_may_ask_at_the_servers_port():
    """And at no other."""
    (rule,) = SPEC["ingress"]
    assert rule == {"from": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]}

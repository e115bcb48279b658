"""Whether a pod of the stand-in cluster would run: image, node, GPU, identity, role and container, as its manifest names them.

Takes the world and a pod's template, gives the reason why not. Knows no command line.
"""

from __future__ import annotations

from typing import Any

from tests.walkthrough.world import Json, World

NAMESPACE = "coldstream"
SERVER = f"Deployment/{NAMESPACE}/coldstream"
_LABEL = "azure.workload.identity/use"
_CLIENT_ID = "azure.workload.identity/client-id"


def gpus(world: World) -> int:
    """How many the GPU nodes have, whoever uses them."""
    return sum(int(pool["nodes"]) for name, pool in world.resources.items() if name.startswith("pool/"))


def servers(world: World) -> int:
    """How many pods the Deployment asks for; one GPU each."""
    return int(world.objects[SERVER]["spec"].get("replicas", 1)) if SERVER in world.objects else 0


def settings(world: World, template: Json) -> dict[str, str]:
    """The pod's variables: those of its ConfigMap as it is now, and its own."""
    (container,) = template["spec"]["containers"]
    name = container["envFrom"][0]["configMapRef"]["name"]
    data: dict[str, str] = world.objects[f"ConfigMap/{NAMESPACE}/{name}"]["data"]
    return data | {each["name"]: each["value"] for each in container["env"] if "value" in each}


def why_not(world: World, template: Json, role: str) -> str:
    """Why such a pod cannot do its work, or "".

    Args:
        world: Azure and cluster.
        template: The pod's.
        role: That its identity needs on the container.
    """
    (container,) = template["spec"]["containers"]
    if f"image/{container['image']}" not in world.resources:
        return f"ImagePullBackOff: {container['image']}"
    if "nvidia.com/gpu" in container["resources"]["limits"] and (reason := _no_node(world, template["spec"])):
        return reason
    return _no_access(world, template, role)


def _no_node(world: World, spec: Json) -> str:
    pools: list[Json] = [pool for name, pool in world.resources.items() if name.startswith("pool/")]
    size = spec["nodeSelector"]["node.kubernetes.io/instance-type"]
    fitting = [pool for pool in pools if pool["--node-vm-size"] == size and int(pool["nodes"])]
    if not any(_tolerated(pool.get("--node-taints", ""), spec["tolerations"]) for pool in fitting):
        return f"Pending: no node of {size} without a taint that is not tolerated"
    return ""


def _tolerated(taint: str, tolerations: list[Json]) -> bool:
    key, _, rest = taint.partition("=")
    value, _, effect = rest.partition(":")
    wanted: list[Any] = [key, "Equal", value, effect]
    return not taint or any(
        [each.get(f) for f in ("key", "operator", "value", "effect")] == wanted for each in tolerations
    )


def _no_access(world: World, template: Json, role: str) -> str:
    if template["metadata"]["labels"].get(_LABEL) != "true":
        return f"no token: the pod has no label {_LABEL}"
    account = template["spec"]["serviceAccountName"]
    client_id = world.objects[f"ServiceAccount/{NAMESPACE}/{account}"]["metadata"]["annotations"][_CLIENT_ID]
    identity = client_id.removeprefix("clientId-of-")
    credential = world.resources.get(f"credential/{identity}/aks", {})
    if credential.get("--subject") != f"system:serviceaccount:{NAMESPACE}:{account}":
        return f"AADSTS700213: {identity} does not trust {account}"
    names = settings(world, template)
    place = f"{names['AZURE_STORAGE_ACCOUNT_NAME']}/{names['COLDSTREAM_MODEL'].split('/')[2]}"
    given = world.resources.get(f"role/principalId-of-{identity} {role}", {})
    blob_account, container = place.split("/")
    if not given.get("--scope", "").endswith(f"/{blob_account}/blobServices/default/containers/{container}"):
        return f"AuthorizationPermissionMismatch: {identity} is no {role}"
    return "" if f"container/{place}" in world.resources else f"ContainerNotFound: {place}"

"""A stand-in for `kubectl` and the cluster behind it: Jobs that cannot be changed, one GPU a node, pods that need their identity.

Takes a command line, changes the world, gives what the command prints. What Kustomize makes was made before by the real
kubectl, which also makes what `create --dry-run=client` prints.
"""

from __future__ import annotations

import re

import yaml

from tests.manifests import rendered
from tests.walkthrough.workload import NAMESPACE, SERVER, gpus, servers, settings, why_not
from tests.walkthrough.world import Call, Json, Refused, World, split, usage

_PLUGIN = "DaemonSet/kube-system/nvidia-device-plugin-daemonset"
_CLUSTER_WIDE = {"Namespace"}
_ROLES = {"coldstream-upload": "Storage Blob Data Contributor", "coldstream-preflight": "Storage Blob Data Reader"}
_OVER = "SuccessCriteriaMet Complete"


def kubectl(world: World, call: Call) -> str:
    """Run one command; what it prints.

    Raises:
        Refused: The real one would end with this exit code.
    """
    (verb, *words), flags = split(call.argv)
    if verb == "kustomize":
        return rendered(words[0].removeprefix("k8s/"))
    context = f"context/{flags.get('--context', world.current_context)}"
    if context not in world.resources:
        raise Refused(1, f"error: {context} does not exist")
    world.resource("cluster", world.resources[context]["--name"])
    verbs = {
        "apply": _apply,
        "create": _create,
        "delete": _delete,
        "get": _get,
        "logs": _logs,
        "patch": _patch,
        "port-forward": _port_forward,
        "rollout": _rollout,
        "scale": _scale,
        "wait": _wait,
    }
    if verb not in verbs:
        usage("kubectl", f"unknown command {verb!r}")
    return verbs[verb](world, words, flags | {"stdin": call.stdin})


def _apply(world: World, words: list[str], flags: dict[str, str]) -> str:
    if flags.get("--filename", "").startswith("https://"):
        world.objects[_PLUGIN] = {"spec": {}}
        return "daemonset.apps/nvidia-device-plugin-daemonset created"
    folder = flags.get("--kustomize", "")
    text = rendered(folder.removeprefix("k8s/")) if folder else flags["stdin"]
    world.applied.append(text)
    documents = [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]
    said = [_applied(world, each) for each in documents if _selected(each, flags.get("--selector"))]
    if not said:
        raise Refused(1, "error: no objects passed to apply")
    return "\n".join(said)


def _selected(each: Json, selector: str | None) -> bool:
    if selector is None:
        return True
    key, _, values = selector.partition(" in ")
    return each["metadata"].get("labels", {}).get(key) in values.strip("()").split(", ")


def _applied(world: World, each: Json) -> str:
    kind, name = each["kind"], each["metadata"]["name"]
    namespace = "" if kind in _CLUSTER_WIDE else each["metadata"].get("namespace", NAMESPACE)
    if namespace and f"Namespace//{namespace}" not in world.objects:
        raise Refused(1, f'Error from server (NotFound): namespaces "{namespace}" not found')
    key = f"{kind}/{namespace}/{name}"
    before = world.objects.get(key)
    if kind == "Job" and before and before["spec"]["template"] != each["spec"]["template"]:
        raise Refused(1, f'The Job "{name}" is invalid: spec.template: Invalid value: field is immutable')
    if kind == "ConfigMap" and before and before["data"] != each["data"]:
        # A cluster would take it, and whatever reads it would have other settings after its next restart.
        raise Refused(1, f'The ConfigMap "{name}" would change under what runs')
    if kind == "Deployment":
        each["spec"].setdefault("replicas", before["spec"]["replicas"] if before else 1)
    if kind == "Job" and not before:
        world.begins("job", name)
    world.objects[key] = each if kind != "Job" or not before else before
    return f"{key} {'configured' if before else 'created'}"


def _create(world: World, words: list[str], flags: dict[str, str]) -> str:
    if "--dry-run" in flags:
        return ""  # the real kubectl's business
    key = f"{words[0].title()}/{NAMESPACE}/{words[-1]}"
    if key in world.objects:
        raise Refused(1, f"error: failed to create {words[0]} {words[-1]}: AlreadyExists")
    world.objects[key] = {}
    return f"{key} created"


def _delete(world: World, words: list[str], flags: dict[str, str]) -> str:
    kind, name = words
    if world.objects.pop(f"{kind.title()}/{NAMESPACE}/{name}", None) is None and "--ignore-not-found" not in flags:
        raise Refused(1, f'Error from server (NotFound): {kind} "{name}" not found')
    return ""


def _object(world: World, target: str) -> Json:
    kind, _, name = target.partition("/")
    if (found := world.objects.get(f"{kind.title()}/{NAMESPACE}/{name}")) is None:
        raise Refused(1, f'Error from server (NotFound): {kind} "{name}" not found')
    return found


def _get(world: World, words: list[str], flags: dict[str, str]) -> str:
    kind, *names = words
    if kind == "nodes" and flags["--output"] == "name":
        return "\n".join(f"node/aks-{flags['--selector'].rpartition('=')[2]}-{number}" for number in range(gpus(world)))
    if kind == "nodes":
        ready = world.comes_to_pass("gpu", "nodes") and (_PLUGIN in world.objects or _managed(world))
        return "1 " * gpus(world) if ready else ""
    if kind == "pods":
        return "\n".join(f"coldstream-{number}" for number in range(servers(world)))
    if kind == "deployment":
        return f"deployment.apps/{names[0]}" if SERVER in world.objects else ""
    return _conditions(world, names[0])


def _managed(world: World) -> bool:
    return any("--enable-managed-gpu" in pool for name, pool in world.resources.items() if name.startswith("pool/"))


def _conditions(world: World, name: str) -> str:
    """A Job's conditions by now; what an upload brought is in the container once it is complete."""
    template = _object(world, f"job/{name}")["spec"]["template"]
    if name == "coldstream-preflight" and servers(world) >= gpus(world):
        return ""  # Pending: the server has the GPU
    if not world.comes_to_pass("job", name):
        return ""
    if why_not(world, template, _ROLES[name]):
        return "FailureTarget Failed"
    model = f"model/{settings(world, template)['COLDSTREAM_MODEL']}"
    if name == "coldstream-upload":
        world.resources[model] = {"--resource-group": _group(world)}
    return _OVER if model in world.resources else "FailureTarget Failed"


def _group(world: World) -> str:
    (name,) = (name for name in world.resources if name.startswith("group/"))
    return name.removeprefix("group/")


def _wait(world: World, words: list[str], flags: dict[str, str]) -> str:
    if flags["--for"] != "condition=complete" or not flags["--timeout"]:
        usage("kubectl", f"wait for {flags['--for']}")
    name = words[0].removeprefix("job/")
    if _conditions(world, name) != _OVER:
        raise Refused(1, f"error: timed out waiting for the condition on jobs/{name}")
    return f"job.batch/{name} condition met"


def _logs(world: World, words: list[str], flags: dict[str, str]) -> str:
    _object(world, words[0])
    return world.log if words[0] == "deployment/coldstream" else "done"


def _rollout(world: World, words: list[str], flags: dict[str, str]) -> str:
    action, target = words
    if action not in ("status", "restart"):
        usage("kubectl", f"rollout {action}")
    template = _object(world, target)["spec"]["template"]
    reason = why_not(world, template, _ROLES["coldstream-preflight"])
    if f"model/{settings(world, template)['COLDSTREAM_MODEL']}" not in world.resources:
        reason = reason or "exit 3: not found"
    if servers(world) > gpus(world):
        reason = reason or "Pending: Insufficient nvidia.com/gpu"
    if action == "status" and reason:
        raise Refused(1, f"error: timed out waiting for the condition: {reason}")
    return f"{target}: {action}"


def _scale(world: World, words: list[str], flags: dict[str, str]) -> str:
    _object(world, words[0])["spec"]["replicas"] = int(flags["--replicas"])
    return f"{words[0]} scaled"


def _patch(world: World, words: list[str], flags: dict[str, str]) -> str:
    if _PLUGIN not in world.objects or words != ["daemonset", _PLUGIN.rpartition("/")[2]]:
        raise Refused(1, f"Error from server (NotFound): {words}")
    if not re.search('"tolerations".*"operator": *"Exists"', flags["--patch"]):
        usage("kubectl", f"patch {flags['--patch']}")
    return "patched"


def _port_forward(world: World, words: list[str], flags: dict[str, str]) -> str:
    """Whoever called keeps it going, and ends it by `forward_ended`."""
    target, ports = words
    port = ports.partition(":")[0]
    if not servers(world) or target != "service/coldstream" or f"forward/{port}" in world.resources:
        raise Refused(1, f"unable to listen on {ports}, or nothing behind {target}")
    world.begins("health", port)
    world.resources[f"forward/{port}"] = {}
    return port


def forward_ended(world: World, port: str) -> None:
    """Nobody listens there any longer."""
    del world.resources[f"forward/{port}"]

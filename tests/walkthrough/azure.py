"""A stand-in for `az`: what it remembers is enough to say no where the real one does.

Takes a command line, changes the world, gives what the command prints. Which commands and flags there are is `azure_flags`' to say.
"""

from __future__ import annotations

import re

import yaml

from tests.coldstream import ROOT
from tests.walkthrough.azure_flags import understood
from tests.walkthrough.world import Call, Json, Refused, World

SUBSCRIPTION = "0a1b2c3d-1111-2222-3333-444455556666"
FEATURE = "ManagedGPUExperiencePreview"
_SERVICE = "Microsoft.ContainerService"
_GROUP = "--resource-group"


def az(world: World, call: Call) -> str:
    """Run one command; what it prints.

    Raises:
        Refused: The real one would end with this exit code.
    """
    name, flags = understood(call)
    if name not in ("login", "account show"):
        world.resource("login", "me")
    act = globals().get(f"_{re.sub('[ -]', '_', name)}")
    done = act(world, flags) if act else None
    return str(done) if done is not None and (flags.get("--output") == "tsv" or "--output" not in flags) else ""


def _put(world: World, kind: str, name: str, flags: Json) -> None:
    """Make or update: most creations of Azure's are both."""
    if kind != "group" and "--resource-group" in flags:
        world.resource("group", flags["--resource-group"])
    world.resources.setdefault(f"{kind}/{name}", {}).update(flags)


def _login(world: World, flags: Json) -> None:
    world.resources["login/me"] = {}


def _account_show(world: World, flags: Json) -> str:
    if "login/me" not in world.resources:
        raise Refused(1, "ERROR: Please run 'az login' to setup account.")
    return SUBSCRIPTION


def _provider_register(world: World, flags: Json) -> None:
    namespace = flags["--namespace"]
    knows = namespace == _SERVICE and world.resources.get(f"feature/{FEATURE}", {}).get("registered", False)
    world.resources[f"provider/{namespace}"] = {"knows the feature": knows}


def _group_create(world: World, flags: Json) -> None:
    _put(world, "group", flags["--name"], flags)


def _group_exists(world: World, flags: Json) -> str:
    return "true" if f"group/{flags['--name']}" in world.resources else "false"


def _group_delete(world: World, flags: Json) -> None:
    world.resource("group", flags["--name"])
    for name, resource in list(world.resources.items()):
        # What a kubeconfig has is not Azure's.
        inside = resource.get(_GROUP) == flags["--name"] and not name.startswith("context/")
        if inside or name == f"group/{flags['--name']}":
            del world.resources[name]
    world.objects.clear()


def _acr_show(world: World, flags: Json) -> None:
    world.resource("registry", flags["--name"])


def _acr_create(world: World, flags: Json) -> None:
    _put(world, "registry", flags["--name"], flags)


def _acr_repository_show(world: World, flags: Json) -> None:
    world.resource("image", f"{flags['--name']}.azurecr.io/{flags['--image']}")


def _acr_run(world: World, flags: Json) -> None:
    """The task is a file of the context: with a context, the real one does not read stdin."""
    registry = world.resource("registry", flags["--registry"])
    values = dict(each.split("=", 1) for each in flags["--set"].splitlines())
    text = (ROOT / flags["--file"]).read_text()
    build, push = yaml.safe_load(re.sub(r"{{\.Values\.(\w+)}}", lambda name: values[name[1]], text))["steps"]
    image, revision = values["image"], values["revision"]
    if "DOCKER_BUILDKIT=1" not in build["env"]:
        raise Refused(1, "the --mount option requires BuildKit")
    words = f"--tag {image} --build-arg REVISION={revision} --target cuda --file Dockerfile ."
    if push["push"] != [image] or build["build"] != words:
        raise Refused(1, f"{image} is not what is built and pushed")
    world.resources[f"image/{image}"] = {_GROUP: registry[_GROUP], "revision": revision}


def _aks_show(world: World, flags: Json) -> str:
    cluster = world.resource("cluster", flags["--name"])
    said = {
        "provisioningState": cluster["state"],
        "oidcIssuerProfile.issuerUrl": f"https://{cluster['--location']}.oic.prod-aks.azure.com/{flags['--name']}/",
    }
    return str(said[flags["--query"]])


def _aks_create(world: World, flags: Json) -> None:
    world.resource("registry", flags["--attach-acr"])
    if f"cluster/{flags['--name']}" in world.resources:
        raise Refused(1, f"The cluster '{flags['--name']}' already exists. Please use command 'az aks update'")
    if flags.get("--network-dataplane") == "cilium" and flags.get("--network-plugin") != "azure":
        raise Refused(1, "Cilium dataplane requires network plugin azure")
    _put(world, "cluster", flags["--name"], flags | {"state": "Creating"})
    _settle(world, world.resource("cluster", flags["--name"]), "cluster")


def _aks_update(world: World, flags: Json) -> None:
    world.resource("registry", flags["--attach-acr"])
    cluster = world.resource("cluster", flags["--name"])
    cluster.update(flags)
    _settle(world, cluster, "cluster")


def _settle(world: World, resource: Json, kind: str) -> None:
    """End an operation: what could not be allocated stays, and says that it is Failed.

    Raises:
        Refused: Azure has no VM for it now.
    """
    scarce = world.scarce.get(kind, 0)
    resource["state"] = "Failed" if scarce else "Succeeded"
    if scarce:
        world.scarce[kind] = scarce - 1
        raise Refused(1, "(AllocationFailed) Allocation failed: no capacity for the requested VM size in this region")


def _aks_get_credentials(world: World, flags: Json) -> None:
    world.resource("cluster", flags["--name"])
    key = f"context/{flags.get('--context', flags['--name'])}"
    if key in world.resources and "--overwrite-existing" not in flags:
        raise Refused(1, "a different object with this name is in the kubeconfig file already")
    world.resources[key] = flags


def _aks_nodepool_show(world: World, flags: Json) -> str:
    pool = world.resource("pool", flags["--name"])
    said = {"name": flags["--name"], "count": pool["--node-count"], "provisioningState": pool["state"]}
    return str(said[flags["--query"]])


def _aks_nodepool_add(world: World, flags: Json) -> None:
    world.resource("cluster", flags["--cluster-name"])
    if f"pool/{flags['--name']}" in world.resources:
        raise Refused(1, f"Node pool {flags['--name']} already exists, please try a different name")
    if "--enable-managed-gpu" in flags:
        world.resource("extension", "aks-preview")
        if not world.resource("provider", _SERVICE)["knows the feature"]:
            raise Refused(1, f"(FeatureNotRegistered) {FEATURE}")
    _put(world, "pool", flags["--name"], flags | {"nodes": "0"})
    _resize(world, world.resource("pool", flags["--name"]))


def _resize(world: World, pool: Json) -> None:
    """The pool has the number that it was asked for at once, and the nodes if Azure has them."""
    if int(pool["--node-count"]) > int(pool["nodes"]):
        _settle(world, pool, "pool")
    pool |= {"nodes": pool["--node-count"], "state": "Succeeded"}


def _aks_nodepool_delete(world: World, flags: Json) -> None:
    if world.resources.pop(f"pool/{flags['--name']}", None) is None:
        raise Refused(1, f"Node pool {flags['--name']} doesnt exist")


def _aks_nodepool_scale(world: World, flags: Json) -> None:
    pool = world.resource("pool", flags["--name"])
    if pool["--node-count"] == flags["--node-count"]:
        raise Refused(1, "The new node count is the same as the current node count.")
    pool["--node-count"] = flags["--node-count"]
    _resize(world, pool)


def _storage_account_create(world: World, flags: Json) -> None:
    if not re.fullmatch("[a-z0-9]{3,24}", flags["--name"]):
        raise Refused(1, f"{flags['--name']} is not a valid storage account name")
    _put(world, "account", flags["--name"], flags)


def _storage_account_show(world: World, flags: Json) -> str:
    world.resource("account", flags["--name"])
    return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{flags['--resource-group']}/providers/Microsoft.Storage/storageAccounts/{flags['--name']}"


def _storage_container_rm_create(world: World, flags: Json) -> None:
    world.resource("account", flags["--storage-account"])
    _put(world, "container", f"{flags['--storage-account']}/{flags['--name']}", flags)


def _identity_create(world: World, flags: Json) -> None:
    _put(world, "identity", flags["--name"], flags)


def _identity_show(world: World, flags: Json) -> str:
    world.resource("identity", flags["--name"])
    return f"{flags['--query']}-of-{flags['--name']}"


def _identity_federated_credential_create(world: World, flags: Json) -> None:
    world.resource("identity", flags["--identity-name"])
    _put(world, "credential", f"{flags['--identity-name']}/{flags['--name']}", flags)


def _role_assignment_create(world: World, flags: Json) -> None:
    """One that is there is given back: the real one does so after a conflict."""
    key = f"{flags['--assignee-object-id']} {flags['--role']}"
    world.resources[f"role/{key}"] = {**flags, "--resource-group": flags["--scope"].split("/")[4]}


def _extension_add(world: World, flags: Json) -> None:
    _put(world, "extension", flags["--name"], flags)


def _feature_register(world: World, flags: Json) -> None:
    _put(world, "feature", flags["--name"], flags)


def _feature_show(world: World, flags: Json) -> str:
    feature = world.resource("feature", flags["--name"])
    feature["registered"] = world.comes_to_pass("feature", flags["--name"])
    return "Registered" if feature["registered"] else "Registering"

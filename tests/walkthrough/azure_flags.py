"""The commands of `az` and their flags: what the real one has, as far as the walkthrough uses it.

Takes a command line, gives the command's name and flags, or refuses it. Knows nothing of what a command does.
"""

from __future__ import annotations

from tests.walkthrough.world import Call, split, usage

_SWITCHES = {
    "--enable-oidc-issuer",
    "--enable-workload-identity",
    "--generate-ssh-keys",
    "--overwrite-existing",
    "--upgrade",
    "--wait",
    "--yes",
}
_GROUP = "--resource-group"
_POOL = (_GROUP, "--cluster-name", "--name")
_SHOW = ("--query", "--output")
# Flags that a command must have, and others that it may have.
_COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "account show": ((), _SHOW),
    "login": ((), ()),
    "provider register": (("--namespace",), ("--wait",)),
    "group create": (("--name", "--location"), ("--output",)),
    "group exists": (("--name",), ()),
    "group delete": (("--name", "--yes"), ()),
    "acr show": (("--name",), (_GROUP, *_SHOW)),
    "acr create": ((_GROUP, "--name", "--sku"), ("--location", "--output")),
    "acr repository show": (("--name", "--image"), ("--output",)),
    "acr run": (("--registry", "--file", "--set"), ("--timeout",)),
    "aks show": ((_GROUP, "--name"), _SHOW),
    "aks update": (
        (_GROUP, "--name", "--enable-oidc-issuer", "--enable-workload-identity"),
        ("--attach-acr", "--output"),
    ),
    "aks create": (
        (_GROUP, "--name", "--enable-oidc-issuer", "--enable-workload-identity"),
        (
            *("--location", "--node-count", "--node-vm-size", "--attach-acr", "--generate-ssh-keys", "--output"),
            *("--network-plugin", "--network-plugin-mode", "--network-dataplane"),
        ),
    ),
    "aks get-credentials": ((_GROUP, "--name"), ("--context", "--overwrite-existing")),
    "aks nodepool show": (_POOL, _SHOW),
    "aks nodepool add": (
        (*_POOL, "--node-vm-size"),
        ("--mode", "--node-count", "--node-taints", "--enable-managed-gpu", "--output"),
    ),
    "aks nodepool scale": ((*_POOL, "--node-count"), ("--output",)),
    "aks nodepool delete": (_POOL, ("--output",)),
    "storage account create": (
        (_GROUP, "--name", "--kind", "--sku"),
        ("--location", "--min-tls-version", "--allow-blob-public-access", "--allow-shared-key-access", "--output"),
    ),
    "storage account show": ((_GROUP, "--name"), _SHOW),
    "storage container-rm create": (("--storage-account", "--name"), (_GROUP, "--output")),
    "identity create": ((_GROUP, "--name"), ("--location", "--output")),
    "identity show": ((_GROUP, "--name"), _SHOW),
    "identity federated-credential create": (
        (_GROUP, "--identity-name", "--name", "--issuer", "--subject", "--audiences"),
        ("--output",),
    ),
    "role assignment create": (
        ("--role", "--scope", "--assignee-object-id", "--assignee-principal-type"),
        ("--output",),
    ),
    "extension add": (("--name",), ("--upgrade", "--yes")),
    "feature register": (("--namespace", "--name"), ("--output",)),
    "feature show": (("--namespace", "--name"), _SHOW),
    "vm list-usage": (("--location",), _SHOW),
}


def understood(call: Call) -> tuple[str, dict[str, str]]:
    """The command's name, and its flags with their values.

    Raises:
        Refused: There is no such command or flag, or one that it needs is missing.
    """
    words, flags = split(call.argv)
    name = " ".join(words).removesuffix(" .")
    if name not in _COMMANDS:
        usage("az", f"{name!r} is no command that is known here")
    must, may = _COMMANDS[name]
    if strange := flags.keys() - {*must, *may}:
        usage("az", f"unrecognized arguments of {name}: {sorted(strange)}")
    if missing := [flag for flag in must if flag not in flags]:
        usage("az", f"{name} requires {missing}")
    if empty := [flag for flag, value in flags.items() if not value and flag not in _SWITCHES]:
        usage("az", f"{name}: expected one argument for {empty}")
    return name, flags

"""A cluster's own values, which are filled in after Kustomize: a changed one reaches the server by a rollout, and only so.

What several steps share is applied with the first of them, while the server that runs is still the old one: what was in it would
be read by every container that is restarted before the new weights are there, and by what `kubectl rollout undo` brings back.
"""

from __future__ import annotations

import pytest

from tests.manifests import OVERLAYS, OWN_OVERLAYS, filled

AKS = (*(f"overlays/{name}" for name in OVERLAYS if name.startswith("aks-")), *OWN_OVERLAYS)
VALUES = {
    "IMAGE": "registry/coldstream:1",
    "STORAGE_ACCOUNT": "account",
    "CONTAINER": "models",
    "MODEL": "phi-4",
    "HF_REPO": "microsoft/phi-4",
    "SERVER_CLIENT_ID": "client-id-of-the-server",
    "UPLOADER_CLIENT_ID": "client-id-of-the-uploader",
}
# What only the upload's Job reads.
UPLOADS = {"HF_REPO", "UPLOADER_CLIENT_ID"}


def both(variant, variable):
    """All objects by kind and name, with the values and with another one of this variable."""
    return [
        {f"{each['kind']}/{each['metadata']['name']}": each for each in filled(variant, values)}
        for values in (VALUES, VALUES | {variable: f"{VALUES[variable]}-newer"})
    ]


@pytest.mark.parametrize("variable", VALUES)
@pytest.mark.parametrize("variant", AKS)
def test_what_steps_share_is_the_same_whatever_the_values(variant, variable):
    """But for the identity of the server's account, which a pod is given when it is made."""
    before, after = both(variant, variable)
    assert before.keys() == after.keys()
    for name, each in before.items():
        if each["metadata"]["labels"]["app.kubernetes.io/component"] != "shared" or each == after[name]:
            continue
        assert (name, variable) == ("ServiceAccount/coldstream", "SERVER_CLIENT_ID")
        assert each.pop("metadata")["annotations"] != after[name].pop("metadata")["annotations"]
        assert each == after[name]


@pytest.mark.parametrize("variable", VALUES)
@pytest.mark.parametrize("variant", AKS)
def test_the_server_is_rolled_where_a_value_matters_to_it(variant, variable):
    """By its pods' template, which is all that a Deployment looks at."""
    before, after = (each["Deployment/coldstream"]["spec"] for each in both(variant, variable))
    assert (before.pop("template") != after.pop("template")) == (variable not in UPLOADS)
    assert before == after

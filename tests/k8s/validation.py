"""Whether an object is one that a cluster takes: Kubernetes' own kinds by version, and those of two operators.

Takes an object and a version of Kubernetes. A field that nobody knows is an error, and so is a kind.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

_SCHEMAS = {
    kind: yaml.safe_load((Path(__file__).parent / "schemas" / f"{kind.lower()}.yaml").read_text())
    for kind in ("ScaledObject", "PodMonitor")
}


def validate(obj: dict[str, Any], kubernetes: str) -> None:
    """Nothing, if a cluster of this version takes `obj`.

    Raises:
        jsonschema.ValidationError: A field is unknown, missing or of the wrong kind.
        kubernetes_validate.SchemaNotFoundError: The kind is unknown.
    """
    _validate(json.dumps(obj), kubernetes)


@functools.cache  # most objects of one variant are the next one's, too
def _validate(text: str, kubernetes: str) -> None:
    obj = json.loads(text)
    if schema := _SCHEMAS.get(obj["kind"]):
        jsonschema.Draft202012Validator(schema).validate(obj)
    else:
        kubernetes_validate.validate(obj, kubernetes, strict=True)

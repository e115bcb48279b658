"""The --config file as plain values: the only module that knows YAML, imported only when there is a file.

Takes a path. Knows no section and no key; quotes nothing of a file that it cannot parse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from app.errors import UsageError


def parse_yaml(path: str) -> Any:
    """What the file holds, None if that is nothing.

    Raises:
        UsageError: It cannot be read, is no YAML, or says a section or key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        for mapping in _sections(root):
            _refuse_repeated_keys(mapping, path)
        return yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"file {path} (--config) cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"file {path}{line}: this is not YAML; expected sections of key: value") from error


def _sections(root: Any) -> list[yaml.MappingNode]:
    """The top of the file and the sections in it."""
    if not isinstance(root, yaml.MappingNode):
        return []
    return [root, *(node for _, node in root.value if isinstance(node, yaml.MappingNode))]


def _refuse_repeated_keys(mapping: yaml.MappingNode, path: str) -> None:
    """YAML would keep the last of them without a word."""
    seen: set[str] = set()
    for key, _ in mapping.value:
        if str(key.value) in seen:
            line = key.start_mark.line + 1
            raise UsageError(f"file {path}, line {line}: {key.value!r} stands twice; keep one")
        seen.add(str(key.value))

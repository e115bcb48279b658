"""Who runs, parses or compares the documents' blocks: found in the tests' own code, so that no list can be out of date.

A test takes the blocks of a section where it calls `texts` with the document, section and language as literals, the bash
blocks of a document, or of sections of it, where it hands its text to `script`, and all blocks where it hands it to `blocks`. Takes source files, gives names. Runs nothing.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator

from tests.coldstream import ROOT

# A document, a section and a language; "" is all of them.
Key = tuple[str, str, str]
_FOLDERS = {"ROOT": "", "K8S": "k8s/"}


@functools.cache
def takers() -> dict[Key, set[str]]:
    """The tests' functions (or modules, for what they take when they are imported), by what they take."""
    found: dict[Key, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        pages = dict(_pages(module))
        for statement in module.body:
            name = f"{path.relative_to(ROOT)}::{getattr(statement, 'name', '')}".removesuffix("::")
            for call in ast.walk(statement):
                for key in _keys(call, pages) if isinstance(call, ast.Call) else ():
                    found[key].add(name)
    return found


def _keys(call: ast.Call, pages: dict[str, str]) -> list[Key]:
    """What a call takes."""
    match call:
        case ast.Call(
            func=ast.Name("texts"), args=[ast.Constant(str(path)), ast.Constant(str(section)), ast.Constant(str(kind))]
        ):
            return [(path, section, kind)]
        case ast.Call(func=ast.Name("script" | "blocks" as reader), args=[text, *chosen], keywords=[]):
            path = pages.get(text.id, "") if isinstance(text, ast.Name) else _read(text)
            kind = "bash" if reader == "script" else ""
            return [(path, section, kind) for section in _sections(chosen)] if path else []
    return []


def _sections(chosen: list[ast.expr]) -> list[str]:
    """The sections that `script` is asked for, as far as they are literals; "" where it is not asked for any."""
    match chosen:
        case []:
            return [""]
        case [ast.Tuple(names)]:
            return [name.value for name in names if isinstance(name, ast.Constant) and isinstance(name.value, str)]
    return []


def _pages(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that a module gives to documents' texts, each with the document."""
    for node in ast.walk(module):
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=value) if path := _read(value):
                yield name, path


def _read(node: ast.expr) -> str:
    """The document that an expression reads, such as `(ROOT / "docs" / "aks.md").read_text()`."""
    match node:
        case ast.Call(func=ast.Attribute(ast.BinOp() as path, "read_text")):
            return _path(path)
    return ""


def _path(node: ast.expr) -> str:
    match node:
        case ast.Name(name) if name in _FOLDERS:
            return _FOLDERS[name]
        case ast.BinOp(left, ast.Div(), ast.Constant(str(part))):
            return "/".join(filter(None, (_path(left).rstrip("/"), part)))
    return ""

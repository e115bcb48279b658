"""What documents name between backticks exists: commands with their flags, modules, targets, settings, metrics, files."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from app.errors import UsageError
from app.settings import parse
from app.settings.parser import FORMS
from app.settings.sources import CONFIG_FLAG, CONFIG_VARIABLE, LOADER_FLAG, names_of
from app.settings.table import Row
from app.settings.tree import ROWS, SECTIONS
from app.settings.wording import default_text
from app.telemetry.names import METRICS, PHASES
from tests.coldstream import ROOT
from tests.documents.pages import PAGES, code, page, prose
from tests.walkthrough.blocks import blocks

OURS = {*names_of(Row.flags), *(flag for form in FORMS.values() for flag in form.options), CONFIG_FLAG, LOADER_FLAG}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Programs that are not ours, whose flags are not ours either.
FOREIGN = {"az", "docker", "dpkg-query", "kube", "kubectl", "pip", "vllm"}
# Its first column is theirs; tests/unit/test_migrating.py tries each.
TABLES_OF_OTHERS = "docs/migrating.md"


def spans(path):
    """Code within the lines of a document, without the names that are only other servers'."""
    text = prose(path)
    return code(re.sub(r"^\| .*? \|", "|", text, flags=re.MULTILINE) if path == TABLES_OF_OTHERS else text)


SPANS = [(path, span) for path in PAGES for span in spans(path)]


def beginning(*words):
    """The code that begins with these words and goes on, with its document."""
    return [(path, span) for path, span in SPANS if span.startswith(f"{' '.join(words)} ")]


def source_of(module):
    """The file that `python -m module` runs."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    path = Path(found.origin)
    return path.with_name("__main__.py") if path.name == "__init__.py" else path


def literals(path):
    """Every string in a Python file."""
    return {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}


def modules():
    """Words behind `python -m`, or of a module of bench or tools alone, with flags."""
    named = [(path, span.split()[2:]) for path, span in beginning("python", "-m")]
    return named + [(path, span.split()) for path, span in SPANS if re.match(r"(bench|tools)(\.\w+)+ --", span)]


@pytest.mark.parametrize(("path", "words"), modules(), ids=str)
def test_a_module_runs_and_has_its_flags(path, words):
    """As a program, and every flag is one that it names itself."""
    source = source_of(words[0])
    assert source.name == "__main__.py" or 'if __name__ == "__main__":' in source.read_text(), path
    assert {word.partition("=")[0] for word in words if FLAG.match(word)} <= literals(source), path


@pytest.mark.parametrize(("path", "span"), beginning("make"), ids=str)
def test_a_target_of_make_is_one(path, span):
    """Of the Makefile."""
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert span.split()[1] in targets, path


@pytest.mark.parametrize(("path", "span"), beginning(".venv/bin/pytest"), ids=str)
def test_a_run_of_tests_finds_some(path, span):
    """The file is there, and has a test by the word behind -k."""
    _, file, option, word = span.split()
    assert option == "-k"
    assert re.search(rf"^(async )?def test_\w*{word}", (ROOT / file).read_text(), re.MULTILINE), path


@pytest.mark.parametrize(("path", "span"), beginning("pip", "install"), ids=str)
def test_an_extra_is_one(path, span):
    """Of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r"coldstream\[(\w+)\]", span)[1] in extras, path


@pytest.mark.parametrize(("path", "span"), beginning("coldstream"), ids=str)
def test_a_command_is_taken(path, span):
    """By the parser; what is only its name is the name of one."""
    name, *words = shlex.split(span)[1:]
    assert name in {*FORMS, "COMMAND"}, path
    if words:
        assert parse([name, *words], {}).name == name


def test_a_command_that_is_not_taken_would_be_found():
    """The parser that is asked says no."""
    with pytest.raises(UsageError):
        parse(["push", "./folder", "az://models/llama", "--revison", "main"], {})


def flags_of_blocks():
    """What the blocks' programs are given: a text beside a block may say why."""
    return {flag for path in PAGES for block in blocks(page(path)) for flag in FLAG.findall(block.text)}


@pytest.mark.parametrize("path", PAGES)
def test_a_flag_is_a_setting(path):
    """Of a command of ours, or of the program in front of it; or a block has it, or a module that the document runs."""
    ran = {flag for document, words in modules() if document == path for flag in literals(source_of(words[0]))}
    named = {
        flag
        for span in spans(path)
        if span.split()[0] not in FOREIGN
        for flag in FLAG.findall(span)
        if not flag.endswith("-")  # "--no-..." is a beginning
    }
    assert named - OURS - flags_of_blocks() - ran == set()


def test_a_value_is_accepted():
    """Of a flag, a variable or a key that is shown with one."""
    ways = [
        (Row.flags, r"(--[\w-]+)[ =](\S+)"),
        (Row.variables, r"([A-Z_]+)=(\S+)"),
        (Row.keys, r"(?:\w+\.)?(\w+): (\S+)"),
    ]
    for kinds, form in ways:
        known = names_of(kinds)
        shown = [(path, known[match[1]][1], match[2]) for path, span in SPANS if (match := matched(form, span, known))]
        assert [(path, text) for path, kind, text in shown if not kind.reads(text)] == []
        assert len(shown) > 2


def matched(form, span, known):
    """The name and its value, if the code is that of a name that is known."""
    match = re.fullmatch(form, span)
    return match if match and match[1] in known else None


def test_a_number_behind_a_flag_is_its_default():
    """As in `--fail-linger` (0 s)."""
    known = names_of(Row.flags)
    found = [
        (path, flag, number)
        for path in PAGES
        for flag, number in re.findall(r"`(--[\w-]+)`\s(?:seconds |for )?\((\d+)", prose(path))
        if flag in known
    ]
    assert len(found) >= 7
    for path, flag, number in found:
        assert re.findall(r"\d+", default_text(known[flag][0]))[:1] == [number], (path, flag)


@pytest.mark.parametrize("path", [*PAGES, "CHANGELOG.md"])
def test_a_name_of_ours_is_one(path):
    """Variables, metrics and what stands in the file, wherever they are named."""
    text = page(path)
    variables = set(re.findall(r"\bCOLDSTREAM_[A-Z][A-Z_]*[A-Z]\b", text))
    assert variables - names_of(Row.variables).keys() - {CONFIG_VARIABLE} == set()
    metrics = {name for span in code(text) for name in re.findall(r"\b(?:coldstream|gen_ai_server)_[a-z_]+", span)}
    assert metrics - {metric.name for metric in METRICS} == set()
    keys = {f"{row.section}.{key}" for row in ROWS for key in row.keys()}  # noqa: SIM118 - not a dict
    named = {span for span in code(text) if re.fullmatch(rf"({'|'.join(SECTIONS)})\.(?!safetensors|py)[a-z_]+", span)}
    assert named - keys - set(PHASES) == set()


@pytest.mark.parametrize("path", [*PAGES, "CHANGELOG.md"])
def test_a_file_is_there(path):
    """By its path from the root, or in the two packages from theirs; a module may go without its .py."""
    folders = ["app", "bench", "docs", "image", "k8s", "streaming", "tests", "tools"]
    folders += [each.name for package in ("app", "streaming") for each in (ROOT / package).glob("[a-z]*/")]
    named = {span for span in code(page(path)) if re.fullmatch(rf"({'|'.join(folders)})/[\w./-]*", span)}
    there = {name for name in named for root in (ROOT, ROOT / "app", ROOT / "streaming") if is_there(root / name)}
    assert named - there == set()


def is_there(path):
    """The file or folder, the module, or the module of a name in it."""
    return path.exists() or path.with_suffix(".py").exists()


def test_there_is_much_to_look_at():
    """What finds no names finds no wrong ones."""
    found = (modules(), beginning("make"), beginning("coldstream"), [span for _, span in SPANS if FLAG.match(span)])
    assert [len(each) >= least for each, least in zip(found, (10, 8, 10, 80), strict=True)] == [True] * 4

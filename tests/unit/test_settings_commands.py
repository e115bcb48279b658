"""Commands, help, the documentation and the cost of settings at the start of the process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import document, parse
from app.settings.tree import ROWS
from tests.unit.configurations import SECRETS, URI, config_file, message

ROOT = Path(__file__).parents[2]


def test_push_and_inspect_take_storage_settings(tmp_path):
    """Helper commands get their arguments, the storage flags, and the environment and file of serve."""
    config = config_file(tmp_path, "server:\n  port: 81\nstorage:\n  max_retries: 1\n")
    push = parse(["push", "--concurrency", "3", "/folder", URI, "--config", config], {"COLDSTREAM_MAX_NUM_SEQS": "7"})
    assert (push.name, push.arguments, push.settings.storage.lanes) == ("push", ("/folder", URI), 3)
    assert (push.settings.server.port, push.settings.storage.max_retries) == (81, 1)
    assert push.settings.engine.max_num_seqs == 7
    inspect = parse(["inspect", URI, "--log-level", "DEBUG"], {"COLDSTREAM_DEVICE": "cuda"})
    assert (inspect.name, inspect.arguments) == ("inspect", (URI,))
    assert inspect.settings.observability.log_level == "debug"


def test_verify_takes_a_folder_to_compare_with():
    """Beside the flags of the source, verify has one of its own."""
    command = parse(["verify", URI, "--against", "/folder", "--concurrency", "3"], {})
    assert (command.name, command.arguments, command.options) == ("verify", (URI,), {"--against": "/folder"})
    assert command.settings.storage.lanes == 3
    assert parse(["verify", URI], {}).options == {"--against": ""}


def test_serve_command_keeps_its_arguments():
    """The positional argument of serve is also the model's URI, wherever it stands."""
    command = parse(["serve", "--port", "1", URI, "--host", "h"], {})
    assert (command.name, command.arguments, command.settings.model.uri) == ("serve", (URI,), URI)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "serve, push, inspect"),
        (["sevre", URI], "did you mean serve?"),
        (["push", URI], "URI"),
        (["inspect"], "URI"),
        (["inspect", URI, URI], "too many arguments"),
        (["inspect", URI, "--port", "1"], "unknown flag '--port'"),
        (["push", "/folder", URI, "--model-loader-extra-config", "{}"], "unknown flag '--model-loader-extra-config'"),
    ],
)
def test_refused_commands(argv, part):
    """An unknown command, a missing argument or another command's flag is a usage error."""
    assert part in message(argv)


def help_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(argv, SECRETS)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_flag_and_variable(capsys):
    """The help of serve has every section, flag and variable, and no secret of the environment."""
    text = help_of(["serve", "--help"], capsys)
    names = {name for row in ROWS for name in (f"{row.section}:", *row.flags(), *row.variables())}
    assert {name for name in names if name not in text} == set()
    assert "s3cret" not in text


def test_help_of_a_helper_command_has_its_sections_only(capsys):
    """The help of inspect has the storage flags and none of the server's."""
    text = help_of(["inspect", "-h"], capsys)
    assert "--concurrency" in text
    assert "--port" not in text


def test_help_of_the_program_names_the_commands(capsys):
    """Without a command, help lists the commands."""
    text = help_of(["--help"], capsys)
    assert all(name in text for name in ("serve URI", "push SRC URI", "inspect URI"))


def test_version(capsys):
    """--version prints the program's name and version."""
    assert re.fullmatch(r"coldstream \d+\.\d+\S*\n", help_of(["--version"], capsys))


def test_documentation_is_up_to_date():
    """docs/settings.md is what the declarations say; `python -m app.settings.document` makes it."""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == document.markdown()


def test_names_are_unique():
    """No flag, variable or key of a section belongs to two settings."""
    for names in (
        [flag for row in ROWS for flag in row.flags()],
        [variable for row in ROWS for variable in row.variables()],
        [f"{row.section}.{key}" for row in ROWS for key in row.keys()],  # noqa: SIM118
    ):
        assert len(names) == len(set(names))


def test_settings_import_nothing_heavy():
    """Loading settings without a file imports neither YAML nor anything of the server or of torch."""
    code = (
        "import sys; from app.settings import load; load(['az://a/b'], {});"
        "print(*sorted({'yaml', 'torch', 'fastapi', 'asyncio', 'difflib', 'numpy', 'pathlib'} & set(sys.modules)))"
    )
    # -I -S: no editable-install hooks, which import pathlib themselves.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{ROOT}:{Path(pytest.__file__).parents[1]}"},
    )
    assert done.stdout.strip() == ""

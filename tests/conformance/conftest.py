"""A whole server for clients to talk to: a tiny model with random weights, a chat template that knows tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.coldstream import Server, serving
from tools.random_checkpoint import write_checkpoint

API_KEY = "a-key"
MAX_WAITING_REQUESTS = 16

TEMPLATE = """{% if tools %}<tools>{{ tools | tojson }}{% endif %}
{% for m in messages %}
<{{ m.role }}>{{ m.content }}
{%- for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}{% endfor %}
{%- if m.role == 'tool' %}<for>{{ m.tool_call_id }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's folder; read it, do not write to it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_checkpoint(folder, "tiny", shards=1)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server in float32 that asks for a key, for all tests that leave it as it was."""
    log_path = tmp_path_factory.mktemp("conformance") / "log"
    flags = (
        "--served-model-name",
        "m",
        "alias",
        "--dtype",
        "float32",
        "--api-key",
        API_KEY,
        "--max-waiting-requests",
        str(MAX_WAITING_REQUESTS),
    )
    with serving(str(tiny_model), *flags, log_path=log_path) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="session")
def short_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose context is so short that every answer is soon done."""
    log_path = tmp_path_factory.mktemp("short") / "log"
    flags = ("--dtype", "float32", "--max-model-len", "64", "--max-body-bytes", "1MiB")
    with serving(str(tiny_model), *flags, log_path=log_path) as running:
        running.wait_ready()
        yield running

"""The walls: which package may import which, and which process never imports what."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; type-checking blocks included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def offenders(paths: list[Path], *forbidden: str) -> list[str]:
    """Imports of a forbidden module or of anything in it."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in sorted(imports(path))
        if any(name == module or name.startswith(module + ".") for module in forbidden)
    ]


def test_streaming_knows_nothing_above_it():
    """Bytes to addresses: no app, no torch, no web framework."""
    assert not offenders(files("streaming"), "app", "torch", "transformers", "fastapi", "starlette", "uvicorn")


def test_only_the_engine_knows_torch():
    """Everything in app outside the engine is free of torch and transformers."""
    outside = [path for path in files("app") if "engine" not in path.parts]
    assert len(outside) > 10
    assert not offenders(outside, "torch", "transformers")


def test_the_engine_knows_no_http_and_no_text():
    """Token ids in, token ids out."""
    assert not offenders(
        files("app/engine"), "fastapi", "uvicorn", "app.api", "app.text", "app.settings", "app.service"
    )


def test_preflight_judges_without_looking():
    """Findings come of figures: nothing of the system, of the network or of the modules that look at them."""
    assert len(files("app/preflight/judgement")) > 4
    assert not offenders(
        files("app/preflight/judgement"),
        *("os", "sys", "socket", "ssl", "http", "pathlib", "subprocess", "tempfile", "time", "threading"),
        *(f"app.preflight.{name}" for name in ("device", "host", "source", "run", "deadline", "report")),
        "streaming.source",
    )
    assert not offenders([ROOT / "app/preflight/report.py", ROOT / "app/preflight/finding.py"], "os", "sys", "time")


def test_what_the_cache_decides_is_pure():
    """Keys, indexes and who has to go: nothing of files, time or threads."""
    pure = [ROOT / f"streaming/cache/{name}.py" for name in ("keys", "index", "eviction")]
    assert not offenders(pure, "os", "sys", "pathlib", "fcntl", "shutil", "time", "threading", "asyncio")


def test_the_api_knows_no_processes():
    """Routes reach the engine through the service alone."""
    assert not offenders(
        files("app/api"),
        "app.supervisor",
        "app.loading",
        "app.engine_host",
        "app.kept_child",
        "app.settings",
        "app.engine",
        "app.child",
    )


def test_telemetry_knows_neither_routes_nor_processes():
    """It is told of requests and phases; only the metrics read the service."""
    assert not offenders(
        files("app/telemetry"), "fastapi", "starlette", "app.api", "app.engine", "app.supervisor", "torch"
    )


def test_text_knows_neither_http_nor_engine():
    """Strings and token ids."""
    assert not offenders(files("app/text"), "fastapi", "app.api", "app.engine", "app.engine_client", "app.service")


@pytest.mark.parametrize(
    ("module", "owner"),
    [
        ("obstore", {"streaming/source.py", "streaming/pipeline.py"}),
        ("azure.identity", {"streaming/identity.py"}),
        # staging.py and upload.py only name the type of the client that blob_client.py opens.
        (
            "azure.storage",
            {
                "streaming/blob_client.py",
                "streaming/staging.py",
                "streaming/upload.py",
                "streaming/upload_blocks.py",
                "streaming/upload_record.py",
            },
        ),
        ("huggingface_hub", {"streaming/hub_client.py"}),
        ("httpx2", {"streaming/hub_client.py"}),
        ("awscrt", {"streaming/digests.py"}),
        ("safetensors", {"app/engine/staged_weights.py"}),
        (
            "transformers",
            {
                "app/engine/models/transformers_model.py",
                "app/engine/tokenizer_conversion.py",
                "app/engine/transformers_attention.py",
                "app/engine/transformers_class.py",
                "app/engine/transformers_description.py",
                "app/engine/transformers_tensors.py",
            },
        ),
        ("yaml", {"app/settings/yaml_file.py"}),
        ("prometheus_client", {"app/telemetry/metrics.py"}),
        ("opentelemetry", {"app/telemetry/exporter.py"}),
        ("fastapi", None),
    ],
)
def test_one_seam_per_outside_system(module, owner):
    """Each library is known to the one place that translates it."""
    users = {
        str(path.relative_to(ROOT))
        for path in files("app", "streaming")
        if any(name == module or name.startswith(module + ".") for name in imports(path))
    }
    if owner is None:
        assert users
        assert all(user.startswith("app/api/") for user in users)
    else:
        assert users == owner


def test_only_settings_and_the_entry_point_touch_the_environment():
    """`os.environ` is read once, at t=0, and handed to the settings and to the children."""
    code = [str(path.relative_to(ROOT)) for path in files("app", "streaming") if _uses_environ(path)]
    assert code == ["app/__main__.py", "streaming/process.py"]


def _uses_environ(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        for node in ast.walk(ast.parse(path.read_text()))
    )


@pytest.mark.parametrize(
    "module", ["streaming.__main__", "app.__main__", "app.serve", "app.api.server", "app.cli", "app.preflight.run"]
)
def test_the_loader_and_the_server_never_import_torch(module):
    """Importing everything of a process but the engine brings in neither torch nor transformers."""
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_start_is_light():
    """What runs before the children are spawned imports no framework and no event loop."""
    code = "import sys, app.__main__; print([m for m in ('asyncio', 'fastapi', 'yaml', 'obstore', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_digests_cost_nothing_on_the_way_to_the_plan():
    """Awscrt, whose import takes 45 ms, is there only once a digest is asked for."""
    modules = "streaming.__main__, streaming.describe, streaming.pipeline, streaming.verified, app.cli, app.serve"
    code = f"import sys, {modules}; print([m for m in sys.modules if 'awscrt' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_hub_costs_nothing_where_it_is_not_asked():
    """Serving, inspecting and pushing a folder import neither huggingface_hub nor its HTTP client."""
    modules = (
        "streaming.__main__, app.__main__, app.serve, app.api.server, app.cli, app.preflight.run, streaming.upload"
    )
    code = f"import sys, {modules}; print([m for m in ('huggingface_hub', 'httpx2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"

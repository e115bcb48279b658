"""One frozen tree of settings, and the only reader of flags, environment and YAML.

    flag > environment (COLDSTREAM_...) > --config file.yaml > default

Takes `sys.argv[1:]` and `os.environ`, gives a `Command` or a `UsageError` of one line. `model`, `storage`
and `serving` declare every setting once; parser, environment, YAML, --help and docs/settings.md derive from
these declarations. Runs at the very start of the process, so it imports nothing heavy: PyYAML only for a
file, difflib only for a mistake. Knows no process, no socket and no model.
"""

from app.settings.commands import Command, load, parse
from app.settings.model import ModelSettings, StartupSettings
from app.settings.serving import EngineSettings, ObservabilitySettings, ServerSettings
from app.settings.storage import StorageSettings
from app.settings.tree import Settings

__all__ = [
    "Command",
    "EngineSettings",
    "ModelSettings",
    "ObservabilitySettings",
    "ServerSettings",
    "Settings",
    "StartupSettings",
    "StorageSettings",
    "load",
    "parse",
]

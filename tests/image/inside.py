"""What the image's own Python says of it: run in a container, with nothing of the checkout. Prints one JSON object."""

import getpass
import importlib
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

# Everything that any of the three processes imports before the first answer.
for name in (
    "app.serve",
    "app.api.server",
    "app.preflight",
    "app.engine.__main__",
    "streaming.__main__",
    "fastapi",
    "torch",
):
    importlib.import_module(name)
specs = [module.__spec__ for module in list(sys.modules.values()) if getattr(module, "__spec__", None)]
# What is frozen into the interpreter or compiled has no source that could be compiled.
bytecode = {spec.name: Path(spec.cached or "") for spec in specs if spec.has_location and spec.origin.endswith(".py")}
flags = {path.read_bytes()[4] for path in bytecode.values() if path.is_file()}
ours = sys.prefix
print(
    json.dumps(
        {
            "user": getpass.getuser(),
            "without_bytecode": [name for name, path in bytecode.items() if not path.is_file()],
            "bytecode_kinds": sorted(flags),
            "programs": [name for name in ("pip", "gcc", "cc", "apt-get", "coldstream") if shutil.which(name)],
            "packages": {each.name.lower(): each.version for each in importlib.metadata.distributions()},
            "weights": [str(path) for path in Path(ours).rglob("*") if path.suffix in {".safetensors", ".gguf"}],
            "bill": json.loads(Path(ours, "sbom.cdx.json").read_text()),
        }
    )
)

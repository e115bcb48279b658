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
    "app.api.app",
    "app.engine.__main__",
    "app.preflight",
    "streaming.loader",
    "torch",
    "uvicorn",
):
    importlib.import_module(name)
sources = [module for module in sys.modules.values() if str(getattr(module, "__file__", "")).endswith(".py")]
flags = {Path(module.__cached__).read_bytes()[4] for module in sources if Path(module.__cached__ or "-").is_file()}
ours = sys.prefix
print(
    json.dumps(
        {
            "user": getpass.getuser(),
            "without_bytecode": [module.__name__ for module in sources if not Path(module.__cached__ or "-").is_file()],
            "bytecode_kinds": sorted(flags),
            "programs": [name for name in ("pip", "gcc", "cc", "apt-get", "coldstream") if shutil.which(name)],
            "packages": {each.name.lower(): each.version for each in importlib.metadata.distributions()},
            "suspicious": [
                str(path)
                for path in Path(ours).rglob("*")
                if path.suffix in {".safetensors", ".gguf", ".pem", ".key"} and path.name != "cacert.pem"
            ],
            "bill": json.loads(Path(ours, "sbom.cdx.json").read_text()),
        }
    )
)

"""crun, but limits stay as they are: podman asks for higher ones, and a root without CAP_SYS_RESOURCE cannot give them.

Takes crun's arguments. Run as a script, by podman.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Drop the limits from the bundle's configuration, and become crun."""
    if "--bundle" in sys.argv:
        path = Path(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
        config = json.loads(path.read_text())
        config["process"].pop("rlimits", None)
        path.write_text(json.dumps(config))
    os.execvp("crun", ["crun", *sys.argv[1:]])


if __name__ == "__main__":
    main()

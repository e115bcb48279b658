"""The flags that `coldstream verify` has beside those of the source.

Knows no other source: these are no settings of a server.
"""

from app.settings.bench import Option
from app.settings.kinds import TEXT

OPTIONS = {"--against": Option(TEXT, "", "Compare with the files of this local folder instead of the manifest.")}
HELP = "\n".join(
    (
        "compare every byte of a checkpoint with its manifest",
        "",
        "Reads all of it, as `serve` does, and keeps nothing. Prints each file with `ok` or with what differs: the range and",
        "both digests. Exit code 0, or 4 where anything differs; 3 is the source, 2 is usage.",
    )
)

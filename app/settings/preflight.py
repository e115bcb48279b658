"""The flags that `coldstream preflight` has beside those of `serve`.

Knows no other source: these are no settings of a server.
"""

from app.settings.bench import Option
from app.settings.kinds import BOOL, number

OPTIONS = {
    "--json": Option(BOOL, False, "Print one JSON object instead of the table."),
    "--timeout": Option(number(1, 600), 25.0, "Seconds after which whatever has not answered has failed."),
}
HELP = "\n".join(
    (
        "check whether serve would work here, without serving",
        "",
        "Device and driver, torch, the source (name, connection, clock, credential, metadata, one range of weights),",
        "the model, memory, disk and limits. Flags, variables and file are those of serve. Exit code 0, or that with",
        "which serve would end: 3 the source, 4 the model, 5 the device; 2 is usage.",
    )
)

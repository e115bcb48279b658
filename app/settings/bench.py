"""The flags that `coldstream bench` has beside those of `serve`, and what its table's columns mean.

Knows no other source: these are no settings of a server.
"""

from typing import Any

import msgspec

from app.settings.kinds import TEXT, Kind, integer
from streaming.options import DIRECT_GPU, HOST_STAGING

COLUMNS = {
    "fetch_s": "the first read of weights to the last weight byte fetched (host-staging: on disk)",
    "stage_s": "from then until every byte is where the engine takes it from",
    "load_s": "from then until the parameters hold them (host-staging: the copy from disk)",
    "ttft_s": "from then until the warm-up prompt's first token",
    "cold_start_s": "all of that: the first read of weights to the first token",
    "first_answer_s": "exec to a client's first token, asked for by polling /health every 20 ms",
}


class Option(msgspec.Struct, frozen=True):
    """A flag of one command: what it accepts, what it is without it, what it is for."""

    kind: Kind
    default: Any
    help: str


def _strategies(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.lower().split(","))
    if len(set(names)) < len(names) or not set(names) <= {DIRECT_GPU, HOST_STAGING}:
        raise ValueError("unknown, or one twice")
    return names


OPTIONS = {
    "--runs": Option(integer(1), 5, "How many cold starts of each strategy."),
    "--strategy": Option(
        Kind(accepts=f"{DIRECT_GPU}, {HOST_STAGING} or both with a comma", metavar="NAMES", read=_strategies),
        (DIRECT_GPU, HOST_STAGING),
        "What to compare: the gain is that of the first over each other.",
    ),
    "--prompt": Option(TEXT, "Hello", "What one token is asked for with."),
}
HELP = "\n".join(
    (
        "measure cold starts of this model on this machine, one server at a time",
        "",
        "Columns, from the milestones of each server's /startupz. Its spans follow one another; of direct-gpu the",
        "work behind them overlaps (bytes land and torch is imported while others are fetched):",
        *(f"  {name:<14} {text}" for name, text in COLUMNS.items()),
        "",
        "Flags, variables and file are those of serve; --host, --port, --api-key and --load-strategy are chosen here.",
    )
)

"""What a rival's process tells the benchmark that started it: its phases, its token, one line on stdout.

Times are seconds since this process's exec. Knows no rival; importing it is as good as free.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from streaming.clock import boottime_s, exec_time_s

RESULT_PREFIX = "RESULT "


class Marks:
    """Phases that follow each other without a gap, from exec on."""

    def __init__(self) -> None:
        self._exec_s = exec_time_s()
        self._since_s = 0.0
        self._phases: list[dict[str, object]] = []
        self.phase("interpreter")

    def phase(self, name: str) -> None:
        """What was done since the last mark."""
        now_s = boottime_s() - self._exec_s
        self._phases.append({"name": name, "start_s": round(self._since_s, 4), "end_s": round(now_s, 4)})
        self._since_s = now_s

    def done(self, token_id: int | None = None) -> NoReturn:
        """Tell all, wait until the benchmark has looked at this process's memory, and end at once."""
        result: dict[str, object] = {"seconds": round(self._since_s, 4), "phases": self._phases}
        if token_id is not None:
            result["token_id"] = token_id
        print(RESULT_PREFIX + json.dumps(result), flush=True)
        sys.stdin.read()
        os._exit(0)

"""An event loop for obstore's reads, some of which end after it.

obstore's threads answer a read by calling into the loop that awaits it. A read that was cancelled while its answer was on its way
cannot be waited for: its thread has looked whether somebody still waits, and calls a moment later, when a load that failed may have
closed the loop. Knows no store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, but answers that come too late are let go; obstore would print a traceback for each."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


class _Loop(asyncio.SelectorEventLoop):
    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call it in the loop's thread; never, once the loop is closed."""
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)

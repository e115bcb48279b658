"""A generation that may take only so long.

Takes an iterator, gives its items until the deadline. Knows nothing of what they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from app.errors import DeadlineExceeded

_Item = TypeVar("_Item")


async def until_deadline(items: AsyncGenerator[_Item, None], deadline_s: float) -> AsyncGenerator[_Item, None]:
    """Yield the items that come within `deadline_s` of the first call; `items` is always closed.

    Raises:
        DeadlineExceeded: There would have been more.
    """
    end_s = asyncio.get_running_loop().time() + deadline_s
    async with aclosing(items):
        while True:
            try:
                # Item by item: the next one may be awaited by another task.
                async with asyncio.timeout_at(end_s):
                    item = await anext(items)
            except StopAsyncIteration:
                return
            except TimeoutError as exc:
                raise DeadlineExceeded(f"the request took longer than {deadline_s:g} s, the server's limit") from exc
            yield item

"""A gate and an inbox that weigh next to nothing while nobody waits at them.

`asyncio.Event` and `asyncio.Queue` hold four deques of 760 bytes: 30 MB for ten thousand idle connections.
"""

import asyncio
from typing import Any

__all__ = ["Gate", "Inbox"]


class Gate:
    """Open at first; who waits passes when it is open. As much of `asyncio.Event` as a connection needs."""

    __slots__ = ("_opening",)

    def __init__(self) -> None:
        self._opening: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether it is open."""
        return self._opening is None

    def set(self) -> None:
        """Open, and let everybody pass."""
        if self._opening is not None:
            self._opening.set_result(None)
            self._opening = None

    def clear(self) -> None:
        """Close."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        """Return when it is open."""
        while self._opening is not None:
            # whoever gives up must not take the others along
            await asyncio.shield(self._opening)


class Inbox:
    """Items in their order, for one reader. As much of `asyncio.Queue` as a connection needs."""

    __slots__ = ("_coming", "_items")

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._coming: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        """Whether there is nothing to get."""
        return not self._items

    def put_nowait(self, item: object) -> None:
        """Put an item behind the others."""
        self._items.append(item)
        if self._coming is not None and not self._coming.done():
            self._coming.set_result(None)

    async def get(self) -> Any:  # noqa: ANN401  whatever was put
        """Take the first item, as soon as there is one."""
        while not self._items:
            self._coming = asyncio.get_running_loop().create_future()
            try:
                await self._coming
            finally:
                self._coming = None
        return self._items.pop(0)

"""Flow control: a replica publishes no faster than it delivers.

Producers that publish all they can would starve the listening of their own replica until it is farther behind than
Redis keeps, and its clients lose events. Numbers are shared, so what other replicas publish takes room here too.
Not here: the listening itself (listener.py), clients that are slower than their replica (catchup.py).
"""

import asyncio
from collections.abc import Callable

from kernel.transport import NOWHERE, Position, Publication

__all__ = ["Window"]

_PATIENCE = 1.0


class Window:
    """Lets publishes through while at most `most` events are on their way out or not delivered here yet.

    A publish that is larger goes alone. `here()` is where this replica stands; `stalled()` is called whenever nothing
    has moved for a second although somebody waits.
    """

    def __init__(self, most: int, *, here: Callable[[], Position], stalled: Callable[[], None]) -> None:
        self._most = most
        self._here = here
        self._stalled = stalled
        self._last = NOWHERE
        self._leaving = 0
        self._turn = asyncio.Lock()
        self._moved = asyncio.Event()

    @property
    def ahead(self) -> int:
        """How many events this replica has yet to deliver, as far as its own publishes can tell."""
        here = self._here()
        # in another epoch the numbers say nothing; the listener is about to learn of it
        behind = self._last.sequence - here.sequence if self._last.epoch == here.epoch else 0
        return self._leaving + max(0, behind)

    async def enter(self, events: int, may: Callable[[], None]) -> None:
        """Wait for room, first come first served; who has entered owes a `leave`.

        `may` is asked before each wait, and raises if there is nothing to be hoped for.
        """
        if self._turn.locked() or not self._fits(events):
            async with self._turn:
                while not self._fits(events):
                    may()
                    self._moved.clear()
                    try:
                        async with asyncio.timeout(_PATIENCE):
                            await self._moved.wait()
                    except TimeoutError:
                        self._stalled()
        self._leaving += events

    def leave(self, events: int, publication: Publication | None) -> None:
        """Note what became of a publish; None if it failed."""
        self._leaving -= events
        if publication is not None and not publication.replayed:
            self._last = Position(publication.epoch, publication.first + publication.size - 1)
        self.moved()

    def moved(self) -> None:
        """Let those who wait look again: something was delivered, or the link is another."""
        self._moved.set()

    def _fits(self, events: int) -> bool:
        ahead = self.ahead
        return not ahead or ahead + events <= self._most

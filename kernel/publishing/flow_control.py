"""Flow control: a replica publishes no faster than it delivers.

Producers that publish all they can would starve the listening of their own replica until it is farther behind than
Redis keeps, and its clients lose events. Numbers are shared, so what other replicas publish takes room here too.
Not here: the listening itself (listener.py), clients that are slower than their replica (catchup.py).
"""

import asyncio
from collections.abc import Callable

from kernel.log.transport import Publication
from kernel.position import NOWHERE, Position

__all__ = ["Window"]

# For how long nothing may move, in seconds, before somebody looks why, and for how many times that before publishes go
# on without: Redis may have lost what this replica waits for, or cannot be read.
_PATIENCE = 1.0
_STALLS = 2


class Window:
    """Lets publishes through while at most `most` events are on their way out or not delivered here yet.

    A publish that is larger goes alone. `here()` is where this replica stands; `stalled()` is called when nothing has
    moved for a second although somebody waits.
    """

    def __init__(self, most: int, *, here: Callable[[], Position], stalled: Callable[[], None]) -> None:
        self._most = most
        self._here = here
        self._stalled = stalled
        self._last = self._then = NOWHERE
        self._leaving = 0
        self._turn = asyncio.Lock()
        self._moved = asyncio.Event()

    @property
    def ahead(self) -> int:
        """How many events this replica has yet to deliver, as far as its own publishes can tell."""
        here, last = self._here(), self._last
        if last.epoch == here.epoch:
            behind = max(0, last.sequence - here.sequence)
        else:
            # Redis has begun a new epoch, of which the listener has yet to hear, or the listener knows a newer one
            behind = last.sequence if here.epoch == self._then.epoch else 0
        return self._leaving + behind

    async def enter(self, events: int, may: Callable[[], None]) -> None:
        """Wait for room, first come first served; who has entered owes a `leave`.

        `may` is asked after all waiting, and raises if there is nothing to be hoped for.
        """
        if self._turn.locked() or not self._fits(events):
            async with self._turn:
                may()
                stalls = 0
                while not self._fits(events):
                    self._moved.clear()
                    try:
                        async with asyncio.timeout(_PATIENCE):
                            await self._moved.wait()
                        stalls = 0
                    except TimeoutError:
                        self._stalled()
                        stalls += 1
                        if stalls == _STALLS:
                            self._last = NOWHERE
                    may()
        self.enter_again(events)

    def enter_again(self, events: int) -> None:
        """Take room at once: a retry must not wait for longer than its id is remembered."""
        self._leaving += events

    def leave(self, events: int, publication: Publication | None) -> None:
        """Note what became of a publish; None if it failed."""
        self._leaving -= events
        if publication is not None and not publication.replayed:
            self._last = Position(publication.epoch, publication.first + publication.size - 1)
            self._then = self._here()
        self.moved()

    def moved(self) -> None:
        """Let those who wait look again: something was delivered, or the link is another."""
        self._moved.set()

    def _fits(self, events: int) -> bool:
        ahead = self.ahead
        return not ahead or ahead + events <= self._most

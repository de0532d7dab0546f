"""Flow control: a replica publishes no faster than it delivers.

Producers that publish without a pause would starve the listening side of their own replica until it is farther behind
than Redis keeps, and its clients would lose events. Publishes therefore wait while too many events are published but
not yet delivered here. Numbers are shared by all replicas, so what other replicas publish takes room as well.
"""

import asyncio
from collections.abc import Callable

from kernel.log.check_requests import CheckRequests
from kernel.log.ring import Ring
from kernel.log.transport import Publication
from kernel.position import NOWHERE, Position
from kernel.resilience.circuit import CircuitState

__all__ = ["FlowControl"]

# Periods of `patience` without any delivery after which publishes go on regardless: Redis may have lost the awaited
# events, or cannot be read.
_STALLS = 2


class FlowControl:
    """Lets publishes through while at most `most` events are in flight or not delivered here yet.

    A larger publish goes alone. `ring` tells what this replica has delivered; `wake()` must be called when it has
    delivered something, and when the broadcaster stops. After `patience` seconds without any delivery, while a
    publish waits, a position check is requested.
    """

    def __init__(self, most: int, ring: Ring, checks: CheckRequests, *, patience: float) -> None:
        self._patience = patience
        self._most = most
        self._ring = ring
        self._checks = checks
        self._last_published = self._delivered_then = NOWHERE
        self._in_flight = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def ahead(self) -> int:
        """Events that are published or in flight and not yet delivered here, as far as publishes here can tell."""
        here, last = self._ring.place, self._last_published
        if last.epoch == here.epoch:
            behind = max(0, last.sequence - here.sequence)
        else:
            # Redis has started an epoch that was not delivered here yet, or this replica is in a newer one.
            behind = last.sequence if here.epoch == self._delivered_then.epoch else 0
        return self._in_flight + behind

    async def enter(self, events: int, require: Callable[[], None]) -> None:
        """Wait for room, first come first served; each call must be followed by a `leave`.

        `require` is called after every wait and raises where waiting further is pointless.
        """
        if self._turn.locked() or not self._fits(events):
            async with self._turn:
                require()
                stalls = 0
                while not self._fits(events):
                    self._changed.clear()
                    try:
                        async with asyncio.timeout(self._patience):
                            await self._changed.wait()
                        stalls = 0
                    except TimeoutError:
                        self._checks.request()
                        stalls += 1
                        if stalls == _STALLS:
                            self._last_published = NOWHERE
                    require()
        self.enter_without_waiting(events)

    def enter_without_waiting(self, events: int) -> None:
        """Count a retry as in flight, without waiting for room: Redis may forget its id meanwhile."""
        self._in_flight += events

    def leave(self, events: int, publication: Publication | None) -> None:
        """Note the outcome of a publish; None if it failed."""
        self._in_flight -= events
        if publication is not None and not publication.replayed:
            self._last_published = Position(publication.epoch, publication.first + publication.size - 1)
            self._delivered_then = self._ring.place
        self.wake()

    def wake(self) -> None:
        """Let waiting publishes look again."""
        self._changed.set()

    def circuit_changed(self, state: CircuitState) -> None:
        """Let waiting publishes look again: they fail if the circuit has opened."""
        self.wake()

    def _fits(self, events: int) -> bool:
        ahead = self.ahead
        return not ahead or ahead + events <= self._most

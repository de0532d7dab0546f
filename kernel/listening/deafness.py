"""Detects a subscription that is connected but receives nothing; it raises no error, and only the numbers show it.

Theory of operation
-------------------

The detector compares the position that announcements have reached with the position that checks find in Redis.

States: *off* (no subscription), *on* (subscribed, but no check has measured where the subscription began), *in step*
(every event that a check found was announced), *doubtful* (a check found events that were not announced yet), *deaf*.

Events:

    subscribed()       off -> on.
    ended()            any -> off.
    check_started()    A check counts only if it started during this subscription. An earlier one may report events that
                       were published before the subscription began, and those are never announced to it.
    found()            in step -> doubtful if the position is after the last announcement.
    announced()        doubtful -> in step if the announcement reaches the position that was found.
    check_finished()   on -> in step at the position that was delivered; doubtful -> deaf after `patience` seconds
                       without any announcement.

Events that a check finds are usually in flight. Fetching them from the history would cost Redis and this replica more
than waiting, and under load the subscription would never catch up again. Announcements arrive in order, so the check
waits for them as long as others arrive, fetches after `grace` seconds without any, and the subscription is given up
after `patience` seconds without any, five times as long.

Invariants: announcements of one epoch say nothing about another. Nothing is fetched early and nothing is called deaf
while announcements arrive. The detector has no clock: `now` is in seconds, on any clock.
"""

from kernel.position import NOWHERE, Position

__all__ = ["DeafnessDetector"]


class DeafnessDetector:
    """Decides whether events that a position check found are in flight, missed, or lost to a deaf subscription.

    `patience` is in seconds; so is `grace`, a fifth of it. `deaf` is true from the check that detects it until the
    subscription has ended.
    """

    def __init__(self, patience: float) -> None:
        self.grace = patience / 5
        self._patience = patience
        self._subscribed = False
        self._reset()

    def _reset(self) -> None:
        self._check_counts = False
        self._announced: Position | None = None
        self._found = NOWHERE
        self._announced_before = NOWHERE
        self._since = 0.0
        self.deaf = False

    @property
    def doubtful(self) -> bool:
        """True while a check has found events that were not announced yet."""
        announced, found = self._announced, self._found
        return announced is not None and announced.epoch == found.epoch and announced.sequence < found.sequence

    def subscribed(self) -> None:
        """Note that a subscription receives from here on."""
        self._subscribed = True

    def ended(self) -> None:
        """Note that the subscription has ended."""
        self._subscribed = False
        self._reset()

    def announced(self, position: Position) -> None:
        """Note that something arrived, after which this replica is at `position`."""
        if self._announced is not None:
            self._announced = position

    def check_started(self) -> None:
        """Note that a check is about to ask Redis for the position."""
        self._check_counts = self._subscribed

    def found(self, position: Position, now: float) -> bool:
        """Note the position that Redis answered; return True if the events up to it are in flight."""
        announced = self._announced
        if not self._check_counts or announced is None or announced.epoch != position.epoch:
            return False
        if not self.doubtful:
            self._found, self._announced_before, self._since = position, announced, now
        elif announced != self._announced_before:
            self._announced_before, self._since = announced, now
        return now - self._since < self.grace

    def check_finished(self, position: Position, now: float) -> None:
        """Note that a check has finished, after which this replica is at `position`; this decides `deaf`."""
        if not self._check_counts:
            self.deaf = False
            return
        if self._announced is None or self._announced.epoch != position.epoch:
            # the first check of this subscription: announcements count from here on
            self._announced = self._found = position
        self.deaf = self.doubtful and now - self._since >= self._patience

"""Whether a subscription hears: one that is alive but deaf raises no error, and only the numbers show it.

Pure: `now` is in seconds, on any clock.
"""

from kernel.position import NOWHERE, Position

__all__ = ["Hearing"]


class Hearing:
    """Holds what is announced against what was published since the subscription began.

    What a check finds published is mostly on its way: fetching it from the history would cost Redis and this replica
    more than to wait, and so much more under load that the subscription falls behind for good. Announcements come in
    order. So it is waited for while others come, and fetched if none does for `grace` seconds; if none does for
    `patience` seconds, five times as long, the subscription is deaf.
    """

    def __init__(self, patience: float) -> None:
        self.grace = patience / 5
        self._patience = patience
        self.begin()

    def begin(self) -> None:
        """Note a new subscription."""
        self._heard: Position | None = None
        self._due = NOWHERE
        self._before = NOWHERE
        self._since = 0.0

    @property
    def doubtful(self) -> bool:
        """Whether something is due that was not announced yet."""
        heard, due = self._heard, self._due
        return heard is not None and heard.epoch == due.epoch and heard.sequence < due.sequence

    def hear(self, place: Position) -> None:
        """Note that something was announced, the log being at `place`."""
        if self._heard is not None:
            self._heard = place

    def brings(self, position: Position, now: float) -> bool:
        """Note that a check found `position`; tell whether what is missing up to it is on its way."""
        heard = self._heard
        if heard is None or heard.epoch != position.epoch:
            # what came before the first check was perhaps published before the subscription
            return False
        if not self.doubtful:
            self._due, self._before, self._since = position, heard, now
        elif heard != self._before:
            self._before, self._since = heard, now
        return now - self._since < self.grace

    def deaf(self, place: Position, now: float) -> bool:
        """Note that a check is over and this replica at `place`; tell whether what is due was not announced in time.

        Behind the first check, it is from there that announcements count.
        """
        if self._heard is None or self._heard.epoch != place.epoch:
            self._heard = self._due = place
        return self.doubtful and now - self._since >= self._patience

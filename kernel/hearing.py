"""Whether a subscription hears: one that is alive but deaf raises no error, and only the numbers show it.

Pure: `now` is in seconds, on any clock.
"""

from kernel.transport import NOWHERE, Position

__all__ = ["Hearing"]


class Hearing:
    """Holds what is announced against what was published since the subscription began.

    What a check finds published may still be on its way; it must be announced within `patience` seconds. Any
    announcement will do: they come in order, so that one proves all before it.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.begin()

    def begin(self) -> None:
        """Note a new subscription."""
        self._heard: Position | None = None
        self._due = NOWHERE
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

    def deaf(self, place: Position, now: float) -> bool:
        """Note a check that was sent during this subscription and found `place`; tell whether it is deaf."""
        if self._heard is None or self._heard.epoch != place.epoch:
            # what came before the first check was perhaps published before the subscription
            self._heard = self._due = place
        elif not self.doubtful:
            self._due, self._since = place, now
        return self.doubtful and now - self._since >= self._patience

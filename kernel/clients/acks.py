"""Which events ask for an ack, and since when they are out: so that nothing has to be counted per client and event.

Events are numbered, and a client's place and its highest ack are numbers too: what it still owes is what lies between.
"""

from bisect import bisect_right
from collections.abc import Iterable

from kernel.clients.client import Client
from kernel.clients.patterns import Patterns
from kernel.log.frames import Frame
from kernel.messages.names import names_of

__all__ = ["Ledger"]

# Only security events ask for acks.
_NAMES = names_of("event", None)
_MOST = 20_000


class Ledger:
    """The events of the present epoch that require an ack, delivered here, and when; the newest 10,000 at least.

    A client owes those of them after its first place, beyond its highest ack and up to where it stands, if its patterns
    let such events through now.
    """

    def __init__(self) -> None:
        self._epoch = ""
        self._sequences: list[int] = []
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def enter(self, frames: Iterable[Frame], now: float) -> None:
        """Take note of frames that are going out."""
        for frame in frames:
            if frame.wants_ack and frame.names == _NAMES:
                epoch, sequence = frame.place
                if epoch != self._epoch:
                    self._epoch = epoch
                    self._sequences.clear()
                    self._times.clear()
                self._sequences.append(sequence)
                self._times.append(now)
        if len(self._sequences) > _MOST:
            del self._sequences[: -_MOST // 2], self._times[: -_MOST // 2]

    def owed(self, client: Client) -> int:
        """How many events the client has got, should have acknowledged, and has not."""
        first, last = self._between(client, client.place.sequence)
        return last - first

    def out_since(self, client: Client, sequence: int) -> float | None:
        """When the newest event went out that an ack of `sequence` would settle now; None if it would settle none."""
        first, last = self._between(client, min(sequence, client.place.sequence))
        return self._times[last - 1] if first < last else None

    def _between(self, client: Client, sequence: int) -> tuple[int, int]:
        if not self._sequences or client.place.epoch != self._epoch or not asks(client.patterns):
            return 0, 0
        first = bisect_right(self._sequences, client.settled)
        return first, max(first, bisect_right(self._sequences, sequence))


def asks(patterns: Patterns) -> bool:
    """Whether these patterns let events through that require an ack."""
    return patterns.matches(_NAMES)

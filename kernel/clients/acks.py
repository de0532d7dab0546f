"""Acks: which delivered events require one, and since when, so that nothing is counted for each client and event.

Events are numbered, and a client's place and its highest ack are numbers too. A client's outstanding acks are those for
the events that lie between the two.
"""

from bisect import bisect_right
from collections.abc import Iterable

from kernel.clients.audiences import Audience, Audiences
from kernel.clients.client import Client
from kernel.clients.patterns import Patterns
from kernel.log.encodings import Encoding
from kernel.log.frames import Frame
from kernel.messages.names import names_of

__all__ = ["AckLedger", "requires_acks"]

# Only security events ask for acks.
_NAMES = names_of("event", None)
_MOST = 20_000


class AckLedger:
    """The events of the current epoch that require an ack and were delivered here, and when.

    At least the newest 10,000 are kept. An ack is outstanding for each event after the client's first position and
    after its highest ack, up to its position, if its current patterns match such events.
    """

    def __init__(self) -> None:
        self._epoch = ""
        self._sequences: list[int] = []
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def enter(self, frames: Iterable[Frame], now: float) -> None:
        """Note frames that are delivered at `now`, in seconds since 1970."""
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
        """Return the number of events that the client has got, should have acknowledged, and has not."""
        first, last = self._between(client, client.place.sequence)
        return last - first

    def outstanding(self, audiences: Audiences[Client, Encoding], clients: Iterable[Client]) -> int:
        """Return how many acks are outstanding from these clients, of which some are in the audiences."""
        if not self._sequences:
            return 0
        behind = [client for client in clients if client.audience is None]
        return sum(map(self._owed_by, audiences)) + sum(map(self.owed, behind))

    def _owed_by(self, audience: Audience[Client, Encoding]) -> int:
        """Return that number for the clients of an audience.

        What depends on their patterns and encoding is looked up once for all of them, and their place once for as long
        as they share it.
        """
        if not audience.encoding.two_way or not requires_acks(audience.patterns):
            return 0
        sequences, total = self._sequences, 0
        place, last, newest = None, 0, 0
        for client in audience.snapshot():
            if client.place is not place:
                place = client.place
                last = bisect_right(sequences, place.sequence) if place.epoch == self._epoch else 0
                newest = sequences[last - 1] if last else 0
            settled = client.settled
            if settled < newest:
                total += last - bisect_right(sequences, settled)
        return total

    def sent_at(self, client: Client, sequence: int) -> float | None:
        """Return when the newest event that an ack of `sequence` would settle was delivered; None if there is none."""
        first, last = self._between(client, min(sequence, client.place.sequence))
        return self._times[last - 1] if first < last else None

    def _between(self, client: Client, sequence: int) -> tuple[int, int]:
        if not self._sequences or client.place.epoch != self._epoch:
            return 0, 0
        if not client.encoding.two_way or not requires_acks(client.patterns):
            return 0, 0
        first = bisect_right(self._sequences, client.settled)
        return first, max(first, bisect_right(self._sequences, sequence))


def requires_acks(patterns: Patterns) -> bool:
    """Return True if these patterns let events through that require an ack.

    Many long patterns take too long to be compared here, so it is False for them until they were compared with such an
    event, in steps, because one was delivered. Before that no ack is outstanding.
    """
    return patterns.matches(_NAMES) if patterns.quick else bool(patterns.known(_NAMES))

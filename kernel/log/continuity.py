"""Decides what may be taken for the next event, and what Redis is told of this replica's past.

Theory of operation
-------------------

Redis may go back in place and give the same numbers to other events, while the subscription lives on. The numbers of
what arrives then look like those of known events, followed by new ones. Only the ids show that the past is another one.

An announcement names the id of the event before its first one. It is *chained* if that is the event delivered last. It
*contradicts* what was delivered if it names another event there, or if an event in it has a known number and another
id. Where an id is unknown, nothing is proved: an announcement of an earlier version names none, and a replica that has
delivered a gap, or has started with an empty history, does not know the id at its position.

States: *verified* (everything delivered is chained to what Redis has confirmed), *unverified* (an event was taken that
is not chained), and, independent of these, *doubting* (an announcement contradicts).

Events:

    advance()      An event was delivered. In the state verified it is the new verified event.
    unchained()    An event is taken that is not chained: verified -> unverified. The verified event stays.
    contradict()   -> doubting. Nothing more is taken from announcements.
    confirmed()    Redis has compared a fence of this replica with its history and has started no new epoch. What the
                   fence named is verified, and the doubts it named are refuted. A check that fails changes nothing.
    another epoch  The position moves to another epoch: verified, not doubting. The epoch that is left is remembered.

Invariants: the verified event never moves forward over an event that is not chained, so that Redis compares the last
event of which it is certain that it belonged to the past that clients have seen. A left epoch is not entered again.
"""

from kernel.position import NOWHERE, Fence, Position

__all__ = ["Continuity"]

_MOST_LEFT = 32


class Continuity:
    """The past of this replica, as far as it is known; `fence` is the part that Redis is told.

    `id` is the id of the event at `place`, "" if it is unknown.
    """

    __slots__ = ("_doubts", "_left", "_unchained", "_verified", "id", "place")

    def __init__(self) -> None:
        self.place = NOWHERE
        self.id = ""
        self._verified = (0, "")
        self._unchained = 0
        self._left: tuple[str, ...] = ()
        self._doubts = 0

    @property
    def fence(self) -> Fence:
        """The past as Redis is told it, with each publish and each position check."""
        return Fence(self.place, self.id, self._verified, self._left, self._doubts)

    @property
    def doubting(self) -> bool:
        """True if an announcement contradicts what was delivered, and no position check has refuted it."""
        return self._doubts > 0

    def start(self, place: Position) -> None:
        """Stand at `place`, with nothing known of what is before it."""
        left = self.place.epoch
        if left and left != place.epoch:
            self._left = (*self._left, left)[-_MOST_LEFT:]
        self.place = place
        self.id = ""
        self._verified = (0, "")
        self._unchained = self._doubts = 0

    def advance(self, place: Position, id: str) -> None:
        """Note that the event at `place` was delivered; `id` is "" for a marker."""
        if place.epoch != self.place.epoch:
            self.start(place)
            return
        self.place = place
        self.id = id
        if id and self._unchained <= self._verified[0]:
            self._verified = (place.sequence, id)

    def unchained(self, sequence: int) -> None:
        """Note that the event with this number is taken although nothing proves which event is before it."""
        self._unchained = sequence

    def contradict(self) -> None:
        """Note that an announcement contradicts what was delivered."""
        self._doubts += 1

    def confirmed(self, fence: Fence) -> int:
        """Note that Redis has found no fork with this fence; return how many contradictions that refutes."""
        if fence.position.epoch != self.place.epoch:
            return 0
        self._doubts -= fence.doubts
        if fence.id:
            self._verified = (fence.position.sequence, fence.id)
            if self.id and self._unchained <= fence.position.sequence:
                self._verified = (self.place.sequence, self.id)
        return fence.doubts

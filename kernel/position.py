"""Positions in the numbering of events, and what a replica holds against Redis.

A position is the pair of epoch and number. Numbers are given once, in Redis, one more for each event, and are the same
on every replica; an epoch is a random name for one life of the numbering.

A number alone does not identify an event: a Redis that was restored or failed over may give the same numbers again. The
id of the event does, so positions are compared by ids wherever time has passed.
"""

from typing import NamedTuple

__all__ = ["NOWHERE", "Fence", "Position"]


class Position(NamedTuple):
    """The number of the last event counted, 0 before the first, in its epoch; "" before Redis was ever reached."""

    epoch: str
    sequence: int


NOWHERE = Position("", 0)


class Fence(NamedTuple):
    """The last events that a replica has delivered, by which Redis finds out whether its numbering was forked.

    An id is "" where it is unknown. Such an id proves nothing.

    Attributes:
        position: The last event that the replica delivered.
        id: The id of that event.
        verified: Number and id of the last event of that epoch of which Redis itself has said that it follows what was
            delivered before. It is the last delivered event, unless an event was taken from an announcement that did
            not name the event before it.
        left: The epochs that the replica has left, the newest last. If Redis is in one of them again, it was restored.
        doubts: The number of announcements that contradict what the replica has delivered. If it is not 0, only an
            event that is still in the history proves that there was no fork.

    """

    position: Position
    id: str
    verified: tuple[int, str] = (0, "")
    left: tuple[str, ...] = ()
    doubts: int = 0

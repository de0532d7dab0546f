"""Positions in the numbering of events.

A position is the pair of epoch and number. Numbers are given once, in Redis, one more for each event, and are the same
on every replica; an epoch is a random name for one life of the numbering.
"""

from typing import NamedTuple

__all__ = ["NOWHERE", "Fence", "Position"]


class Position(NamedTuple):
    """The number of the last event counted, 0 before the first, in its epoch; "" before Redis was ever reached."""

    epoch: str
    sequence: int


NOWHERE = Position("", 0)


class Fence(NamedTuple):
    """The last event that a replica delivered: its position and its id ("" if unknown).

    Redis compares it with its own history, so that a fork of the numbering is found.
    """

    position: Position
    id: str

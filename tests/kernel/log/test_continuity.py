"""Continuity: which event is verified, when a contradiction is refuted, and which epochs were left."""

from kernel.log.continuity import Continuity
from kernel.position import NOWHERE, Fence, Position


def at(sequence: int, epoch: str = "e") -> Position:
    """Return a position."""
    return Position(epoch, sequence)


def standing(sequence: int) -> Continuity:
    """Return the continuity of a replica that has delivered this event and verified it."""
    continuity = Continuity()
    continuity.start(at(sequence - 1))
    continuity.advance(at(sequence), f"id-{sequence}")
    return continuity


def test_at_first_nothing_is_known() -> None:
    """Before the first contact a replica holds nothing against Redis; after it, nothing but the position."""
    continuity = Continuity()
    assert continuity.fence == Fence(NOWHERE, "")
    continuity.start(at(7))
    assert continuity.fence == Fence(at(7), "")


def test_chained_events_are_verified() -> None:
    """An event that follows a verified one is verified; a gap is not an event."""
    continuity = standing(3)
    assert continuity.fence == Fence(at(3), "id-3", (3, "id-3"))
    continuity.advance(at(9), "")
    assert continuity.fence == Fence(at(9), "", (3, "id-3"))
    continuity.advance(at(10), "id-10")
    assert continuity.fence == Fence(at(10), "id-10", (10, "id-10"))


def test_hearsay_does_not_move_what_is_verified() -> None:
    """After an event that is not chained nothing is verified, until Redis has confirmed both parts of the fence."""
    continuity = standing(3)
    continuity.unchained(4)
    for number in (4, 5):
        continuity.advance(at(number), f"id-{number}")
    asked = continuity.fence
    assert asked == Fence(at(5), "id-5", (3, "id-3"))
    continuity.advance(at(6), "id-6")
    continuity.confirmed(asked)
    assert continuity.fence == Fence(at(6), "id-6", (6, "id-6"))


def test_hearsay_that_came_after_the_question() -> None:
    """An event that was taken after the position check had asked is not confirmed by its answer."""
    continuity = standing(3)
    asked = continuity.fence
    continuity.unchained(4)
    continuity.advance(at(4), "id-4")
    continuity.confirmed(asked)
    assert continuity.fence == Fence(at(4), "id-4", (3, "id-3"))


def test_an_unknown_event_confirms_nothing() -> None:
    """A confirmed fence without an id leaves what is verified as it was."""
    continuity = standing(3)
    continuity.advance(at(9), "")
    continuity.confirmed(continuity.fence)
    assert continuity.fence.verified == (3, "id-3")


def test_doubts() -> None:
    """A contradiction stays until a position check has refuted it that was told of it."""
    continuity = standing(3)
    before = continuity.fence
    continuity.contradict()
    asked = continuity.fence
    continuity.contradict()
    assert (continuity.doubting, asked.doubts, continuity.fence.doubts) == (True, 1, 2)
    assert continuity.confirmed(before) == 0
    assert continuity.confirmed(asked) == 1
    assert continuity.doubting
    assert continuity.confirmed(continuity.fence) == 1
    assert not continuity.doubting


def test_another_epoch() -> None:
    """In another epoch nothing of the old one is held against Redis, but for its name."""
    continuity = standing(3)
    continuity.unchained(4)
    continuity.contradict()
    old = continuity.fence
    continuity.advance(at(0, "f"), "")
    assert continuity.fence == Fence(at(0, "f"), "", left=("e",))
    assert continuity.confirmed(old) == 0
    continuity.advance(at(1, "f"), "id")
    assert continuity.fence == Fence(at(1, "f"), "id", (1, "id"), ("e",))


def test_only_the_newest_left_epochs_are_remembered() -> None:
    """The names of the last 32 epochs are remembered, which bounds each call."""
    continuity = Continuity()
    for number in range(40):
        continuity.advance(at(0, f"e{number}"), "")
    assert continuity.fence.left == tuple(f"e{number}" for number in range(7, 39))

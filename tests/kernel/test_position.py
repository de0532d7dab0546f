"""Positions: plain pairs that compare by epoch and number."""

from kernel.position import NOWHERE, Fence, Position


def test_nowhere() -> None:
    """Before Redis was ever reached the epoch is empty and the number is 0."""
    assert NOWHERE == ("", 0)


def test_a_fence_is_a_position_with_the_id_of_its_event() -> None:
    """Two fences differ when another event bears the same number."""
    here = Position("e", 7)
    assert Fence(here, "a") == (here, "a", (0, ""), (), 0)
    assert Fence(here, "a") != Fence(here, "b")

"""Hearing: a deaf subscription is told apart from a quiet one, a slow one and a new one."""

from kernel.listening.deafness import Hearing
from kernel.position import Position


def at(sequence: int, epoch: str = "e") -> Position:
    """Return a place."""
    return Position(epoch, sequence)


def listening(sequence: int = 10) -> Hearing:
    """Return the hearing of a subscription whose first check found this place; its patience is 1 s, its grace 0.2 s."""
    hearing = Hearing(1.0)
    assert not hearing.brings(at(sequence), 0.0)
    assert not hearing.deaf(at(sequence), 0.0)
    return hearing


def test_quiet() -> None:
    """Section 7, delivery: where nothing is published nothing is due."""
    hearing = listening()
    for now in range(1, 9):
        hearing.brings(at(10), float(now))
        assert not hearing.deaf(at(10), float(now))
    assert not hearing.doubtful


def test_on_its_way() -> None:
    """Section 7, delivery: what was published a moment ago need not be fetched, unless nothing comes at all."""
    hearing = listening()
    assert hearing.brings(at(11), 5.0)
    assert hearing.doubtful
    assert hearing.brings(at(12), 5.19)
    assert not hearing.brings(at(12), 5.2)


def test_far_behind_but_hearing() -> None:
    """Section 7, delivery: while announcements come, the rest is behind them, however long that takes."""
    hearing = listening()
    assert hearing.brings(at(99), 5.0)
    for number in range(11, 99):
        hearing.hear(at(number))
        now = float(number)
        assert hearing.brings(at(99 + number), now)
        assert not hearing.deaf(at(number), now)
        assert hearing.brings(at(99 + number), now + 0.1)
    assert not hearing.brings(at(200), 98.3)
    hearing.hear(at(99))
    assert not hearing.doubtful


def test_deaf() -> None:
    """Section 7, delivery: what was published and not announced in time shows that the subscription is deaf."""
    hearing = listening()
    assert hearing.brings(at(11), 5.0)
    assert not hearing.brings(at(12), 5.5)
    assert not hearing.deaf(at(12), 5.5)
    assert hearing.doubtful
    assert not hearing.deaf(at(12), 5.9)
    assert hearing.deaf(at(12), 6.0)


def test_deaf_without_further_events() -> None:
    """Section 7, delivery: it is found also when no further event arrives, and although it once heard."""
    hearing = listening()
    hearing.hear(at(11))
    assert hearing.brings(at(12), 5.0)
    assert not hearing.brings(at(12), 6.0)
    assert hearing.deaf(at(12), 6.0)


def test_late() -> None:
    """Section 7, delivery: an announcement that comes in time, or anything behind it, is enough."""
    hearing = listening()
    assert hearing.brings(at(11), 5.0)
    hearing.hear(at(11))
    assert not hearing.doubtful
    assert hearing.brings(at(12), 7.0)
    hearing.hear(at(14))
    assert hearing.brings(at(14), 9.0)
    assert not hearing.deaf(at(14), 9.0)


def test_a_new_subscription() -> None:
    """Section 7, delivery: what was published before a subscription is fetched, and not due."""
    hearing = listening()
    assert hearing.brings(at(11), 5.0)
    hearing.begin()
    assert not hearing.doubtful
    hearing.hear(at(11))
    assert not hearing.brings(at(20), 9.0)
    # the fetch failed, and is tried again
    assert not hearing.brings(at(20), 9.1)
    assert not hearing.deaf(at(20), 9.1)
    assert hearing.brings(at(20), 19.0)
    assert not hearing.deaf(at(20), 19.0)


def test_a_new_epoch() -> None:
    """Section 7, epochs: numbers of the old epoch say nothing about the new one."""
    hearing = listening()
    assert hearing.brings(at(11), 5.0)
    assert not hearing.brings(at(3, "f"), 9.0)
    assert not hearing.deaf(at(3, "f"), 9.0)
    assert not hearing.doubtful
    assert hearing.brings(at(4, "f"), 10.0)
    hearing.hear(at(2, "g"))
    assert not hearing.doubtful

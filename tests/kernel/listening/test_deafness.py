"""The deafness detector: a deaf subscription is told apart from a quiet one, a slow one and a new one."""

from kernel.listening.deafness import DeafnessDetector
from kernel.position import Position


def at(sequence: int, epoch: str = "e") -> Position:
    """Return a position."""
    return Position(epoch, sequence)


def check(detector: DeafnessDetector, position: Position, now: float) -> bool:
    """Make a check that finds a position and delivers up to it; return True if that was in flight."""
    detector.check_started()
    in_flight = detector.found(position, now)
    detector.check_finished(position, now)
    return in_flight


def in_step(sequence: int = 10) -> DeafnessDetector:
    """Return a detector whose first check found this position; its patience is 1 s, its grace 0.2 s."""
    detector = DeafnessDetector(1.0)
    detector.subscribed()
    assert not check(detector, at(sequence), 0.0)
    assert not detector.deaf
    return detector


def test_quiet() -> None:
    """A subscription is not deaf while nothing is published."""
    detector = in_step()
    for now in range(1, 9):
        check(detector, at(10), float(now))
        assert not detector.deaf
    assert not detector.doubtful


def test_in_flight() -> None:
    """Events that a check finds are in flight for the grace period, and are then to be fetched if nothing arrives."""
    detector = in_step()
    assert check(detector, at(11), 5.0)
    assert detector.doubtful
    assert check(detector, at(12), 5.19)
    assert not check(detector, at(12), 5.2)


def test_far_behind_but_receiving() -> None:
    """While announcements arrive, further events are in flight, however long that takes."""
    detector = in_step()
    assert check(detector, at(99), 5.0)
    for number in range(11, 99):
        detector.announced(at(number))
        now = float(number)
        assert check(detector, at(99 + number), now)
        assert not detector.deaf
        assert check(detector, at(99 + number), now + 0.1)
    assert not check(detector, at(200), 98.3)
    detector.announced(at(99))
    assert not detector.doubtful


def test_deaf() -> None:
    """A subscription is deaf if nothing is announced for the patience after a check has found an event."""
    detector = in_step()
    assert check(detector, at(11), 5.0)
    assert not check(detector, at(12), 5.5)
    assert not detector.deaf
    assert detector.doubtful
    check(detector, at(12), 5.9)
    assert not detector.deaf
    check(detector, at(12), 6.0)
    assert detector.deaf


def test_deaf_without_further_events() -> None:
    """A deaf subscription is detected although no further event is published and announcements arrived before."""
    detector = in_step()
    detector.announced(at(11))
    assert check(detector, at(12), 5.0)
    assert not check(detector, at(12), 6.0)
    assert detector.deaf


def test_late() -> None:
    """An announcement that arrives in time, of that event or of a later one, ends the doubt."""
    detector = in_step()
    assert check(detector, at(11), 5.0)
    detector.announced(at(11))
    assert not detector.doubtful
    assert check(detector, at(12), 7.0)
    detector.announced(at(14))
    assert check(detector, at(14), 9.0)
    assert not detector.deaf


def test_a_new_subscription() -> None:
    """Events that were published before a subscription are fetched, and the subscription need not receive them."""
    detector = in_step()
    assert check(detector, at(11), 5.0)
    detector.ended()
    assert not detector.doubtful
    detector.subscribed()
    detector.announced(at(11))
    detector.check_started()
    assert not detector.found(at(20), 9.0)
    # fetching failed, and the check is made again
    assert not check(detector, at(20), 9.1)
    assert not detector.deaf
    assert check(detector, at(20), 19.0)
    assert not detector.deaf


def test_a_subscription_that_ends_while_deaf() -> None:
    """A subscription does not inherit that the one before it was deaf."""
    detector = in_step()
    check(detector, at(11), 5.0)
    check(detector, at(11), 6.0)
    assert detector.deaf
    detector.ended()
    assert not detector.deaf
    detector.subscribed()
    check(detector, at(11), 7.0)
    assert not detector.deaf


def test_a_check_that_started_before_the_subscription() -> None:
    """A check that started before the subscription, or during another one, says nothing about the subscription."""
    detector = DeafnessDetector(1.0)
    detector.check_started()
    detector.subscribed()
    assert not detector.found(at(10), 1.0)
    detector.check_finished(at(10), 1.0)
    # event 11 was published before the subscription as well, and its announcement never arrives
    assert not check(detector, at(11), 2.0)
    assert not detector.doubtful
    detector.check_started()
    detector.ended()
    detector.subscribed()
    assert not detector.found(at(12), 3.0)
    detector.check_finished(at(12), 3.0)
    assert not detector.doubtful


def test_a_new_epoch() -> None:
    """Numbers of one epoch say nothing about another one."""
    detector = in_step()
    assert check(detector, at(11), 5.0)
    assert not check(detector, at(3, "f"), 9.0)
    assert not detector.deaf
    assert not detector.doubtful
    assert check(detector, at(4, "f"), 10.0)
    detector.announced(at(2, "g"))
    assert not detector.doubtful

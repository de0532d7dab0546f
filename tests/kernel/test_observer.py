"""Observers are guests: they hear everything, and one that fails is shown out."""

import inspect
import logging

import pytest

from kernel.circuit import CircuitState, Transition
from kernel.observer import Delivered, Guarded, Lost, Observer, Published, Refilled, Replayed, Retried
from kernel.transport import Position, Publication

HERE = Position("e", 1)
DETAILS = {
    "published": Published(["event"], Publication("e", 1, 1, 2, False), 0),
    "retried": Retried(["event"], 1, 1.0, "TransportUnavailable"),
    "delivered": Delivered(HERE, HERE, 3),
    "replayed": Replayed(HERE, HERE, 0, True),
    "refilled": Refilled(HERE, HERE),
    "lost": Lost("e", 1, 2),
    "foreign": 1,
    "circuit_moved": Transition(CircuitState.CLOSED, CircuitState.OPEN, "down", 5),
    "listener_restarted": "connection lost",
}


class Notebook(Observer):
    """Writes down what it hears, or fails."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.fails = False

    def delivered(self, delivered: Delivered) -> None:
        """Write it down, or fail."""
        if self.fails:
            raise ZeroDivisionError
        self.heard.append(delivered)

    def foreign(self, count: int) -> None:
        """Write it down."""
        self.heard.append(count)


def test_every_hook_is_known() -> None:
    """The table above names each hook, so that the tests below leave none out."""
    assert {name for name, _ in inspect.getmembers(Observer, inspect.isfunction)} - {"__init__"} == DETAILS.keys()


@pytest.mark.parametrize("hook", DETAILS)
def test_hooks_do_nothing(hook: str) -> None:
    """An observer that overrides nothing is told everything and does nothing."""
    for observer in (Observer(), Guarded(Observer())):
        assert getattr(observer, hook)(DETAILS[hook]) is None


def test_a_guest_is_told() -> None:
    """A guarded guest hears what it overrides."""
    guest = Notebook()
    guard = Guarded(guest)
    guard.delivered(DETAILS["delivered"])  # type: ignore[arg-type]
    guard.foreign(7)
    assert guest.heard == [DETAILS["delivered"], 7]


def test_a_guest_that_fails_is_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    """One that raises is logged once, with the hook's name, and hears no more; the kernel does not notice."""
    guest = Notebook()
    guard = Guarded(guest)
    guest.fails = True
    for _ in range(2):
        guard.delivered(DETAILS["delivered"])  # type: ignore[arg-type]
        guard.foreign(7)
    assert guest.heard == []
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "delivered" in line.message
    assert line.exc_info

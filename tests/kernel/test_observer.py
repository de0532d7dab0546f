"""Observers are guests: they hear everything, and one that fails is shown out."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context

import pytest

from kernel.clients.client import Written
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.log.envelope import Entry, TraceContext
from kernel.log.frames import Frame
from kernel.log.transport import Publication
from kernel.observer import (
    Acknowledged,
    Delivered,
    Drained,
    Failed,
    Guarded,
    Lost,
    Observer,
    Published,
    Publishing,
    Refilled,
    Replayed,
    Retried,
    Run,
)
from kernel.position import Position
from kernel.resilience.circuit import CircuitState, Transition

HERE = Position("e", 1)
THEIRS = TraceContext("00-1-2-01", "a=b", "c=d")
PUBLISHING = Publishing(["event"], THEIRS)
DETAILS = {
    "sharing": [copy_context()],
    "published": Published(["event"], Publication("e", 1, 1, 2, False), 0, 0.1),
    "failed": Failed(["event"], "TransportUnavailable", 0.1),
    "retried": Retried(["event"], 1, 1.0, "TransportUnavailable"),
    "delivered": Delivered(HERE, HERE, 1.0, 2.0, []),
    "caught_up": Written(1, 0, 0),
    "replayed": Replayed(HERE, HERE, 0, "recovered", "memory", 1.0, 2.0),
    "acknowledged": Acknowledged(None),
    "left": 1,
    "refilled": Refilled(HERE, HERE),
    "lost": Lost("e", 1, 2),
    "renumbered": "f",
    "foreign": 1,
    "circuit_moved": Transition(CircuitState.CLOSED, CircuitState.OPEN, "down", 5),
    "listener_restarted": "connection lost",
    "drained": Drained(0, 1.0, 2.0),
}
"""Every hook that takes one detail, with an example of it."""


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


class Host(Observer):
    """Puts a context manager around publishes, which may fail on the way in or out."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.left: list[BaseException | None] = []

    def publishing(self, publishing: Publishing) -> AbstractContextManager[TraceContext]:
        """Give the events a trace of its own."""
        if self.fails == "call":
            raise ZeroDivisionError
        return self._around()

    @contextmanager
    def _around(self) -> Iterator[TraceContext]:
        if self.fails == "enter":
            raise ZeroDivisionError
        try:
            yield TraceContext("00-8-9-01")
        except KeyError as error:
            self.left.append(error)
            raise
        else:
            self.left.append(None)
        finally:
            if self.fails == "exit":
                raise ZeroDivisionError


def test_every_hook_is_known() -> None:
    """The table above names each hook, so that the tests below leave none out."""
    others = {"__init__", "publishing", "slowed"}
    assert {name for name, _ in inspect.getmembers(Observer, inspect.isfunction)} - others == DETAILS.keys()


@pytest.mark.parametrize("hook", DETAILS)
def test_hooks_do_nothing(hook: str) -> None:
    """An observer that overrides nothing is told everything and does nothing."""
    for observer in (Observer(), Guarded(Observer())):
        assert getattr(observer, hook)(DETAILS[hook]) is None


def test_a_publish_keeps_its_trace() -> None:
    """Without a guest that does otherwise, events carry the trace context of their producer."""
    for observer in (Observer(), Guarded(Observer())):
        observer.slowed()
        with observer.publishing(PUBLISHING) as trace:
            assert trace == THEIRS


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


def test_a_guest_surrounds_a_publish() -> None:
    """What a guest yields is the trace of the events; it sees the publish's error and cannot hide it."""
    guest = Host()
    guard = Guarded(guest)
    with guard.publishing(PUBLISHING) as trace:
        assert trace == TraceContext("00-8-9-01")
    error = KeyError()
    with pytest.raises(KeyError), guard.publishing(PUBLISHING):
        raise error
    assert guest.left == [None, error]


@pytest.mark.parametrize("fails", ["call", "enter", "exit"])
def test_a_guest_that_fails_around_a_publish(fails: str, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever it fails, the publish goes on, with its producer's trace if need be, and the guest is switched off."""
    guard = Guarded(Host(fails))
    with guard.publishing(PUBLISHING) as trace:
        assert trace == (TraceContext("00-8-9-01") if fails == "exit" else THEIRS)
    with guard.publishing(PUBLISHING) as trace:
        assert trace == THEIRS
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "publishing" in line.message


def test_a_guest_that_fails_does_not_hide_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A publish that fails raises its own error, not the guest's."""
    with pytest.raises(KeyError), Guarded(Host("exit")).publishing(PUBLISHING):
        raise KeyError
    assert "switched off" in caplog.text


def test_recipients() -> None:
    """Section 10, traces: how many clients an event reached is counted by patterns, for any event of a run."""
    entry = Entry(sequence=1, id="1", type="scene_change", data=b"{}")  # type: ignore[arg-type]
    run = Run([], {EVERYTHING: 3, Patterns.of(["alert.*"]): 5, Patterns.of(["scene*"]): 1}, Written(0, 0, 0), 1.0)
    assert run.recipients(Frame.of("e", entry)) == 4
    assert run.recipients(Frame.gap("e", 1, 2)) == 9

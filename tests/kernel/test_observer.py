"""Observers: each is called by every hook, and one that raises is switched off."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context, copy_context

import pytest

from kernel.observer import (
    Acknowledged,
    CircuitMoved,
    Delivered,
    Drained,
    Failed,
    Lost,
    Observer,
    Observers,
    Published,
    Publishing,
    Refilled,
    Replayed,
    Retried,
    TraceContext,
    Written,
)
from kernel.position import Position

HERE = Position("e", 1)
THEIRS = TraceContext("00-1-2-01", "a=b", "c=d")
PUBLISHING = Publishing(["event"], THEIRS, "id-1")
DETAILS = {
    "sharing": ([copy_context()], [0.1]),
    "published": Published(["event"], HERE, 2, False, 0, 0.1),
    "failed": Failed(["event"], "TransportUnavailable", 1, None, 0.1),
    "retried": Retried(["event"], 1, 1.0, "TransportUnavailable"),
    "delivered": Delivered(HERE, HERE, 1.0, 2.0, 1, Written(3, 0, 0), [(0.5, 1)], []),
    "caught_up": Written(1, 0, 0),
    "replayed": Replayed(0, HERE, HERE, 0, "recovered", "memory", 1.0, 2.0),
    "acknowledged": Acknowledged(None),
    "left": 1,
    "refilled": Refilled(HERE, HERE),
    "lost": Lost("e", 1, 2),
    "renumbered": "f",
    "foreign": 1,
    "circuit_moved": CircuitMoved("closed", "open", "down", 5),
    "listener_restarted": "connection lost",
    "drained": Drained(0, 1.0, 2.0),
}
"""Every hook that takes details, with an example of them: one, or a tuple of several."""


def details_of(hook: str) -> tuple[object, ...]:
    """Return the arguments of the example of a hook."""
    detail = DETAILS[hook]
    return detail if hook == "sharing" and isinstance(detail, tuple) else (detail,)


class Notebook(Observer):
    """Records what it is told, or fails."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.fails = False

    def delivered(self, delivered: Delivered) -> None:
        """Record it, or fail."""
        if self.fails:
            raise ZeroDivisionError
        self.heard.append(delivered)

    def foreign(self, count: int) -> None:
        """Record it."""
        self.heard.append(count)


class Host(Observer):
    """Puts a context manager around publishes, which may fail on the way in or out."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.left: list[BaseException | None] = []

    def publishing(self, publishing: Publishing) -> AbstractContextManager[TraceContext]:
        """Run the publish with a trace of its own."""
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
    others = {"__init__", "publishing", "slowed", "follows"}
    assert {name for name, _ in inspect.getmembers(Observer, inspect.isfunction)} - others == DETAILS.keys()


@pytest.mark.parametrize("hook", DETAILS)
def test_hooks_do_nothing(hook: str) -> None:
    """An observer that overrides nothing is told everything and does nothing."""
    for observer in (Observer(), Observers(), Observers([Observer(), Observer()])):
        assert getattr(observer, hook)(*details_of(hook)) is None
        assert not observer.follows("00-1-2-01")


def test_a_publish_keeps_its_trace() -> None:
    """If no observer changes it, events carry the trace context of their producer."""
    for observer in (Observer(), Observers(), Observers([Observer()])):
        observer.slowed()
        with observer.publishing(PUBLISHING) as trace:
            assert trace == THEIRS


def test_a_guest_is_told() -> None:
    """A guarded observer is called by the hooks that it overrides."""
    guest = Notebook()
    guard = Observers([guest])
    guard.delivered(DETAILS["delivered"])  # type: ignore[arg-type]
    guard.foreign(7)
    assert guest.heard == [DETAILS["delivered"], 7]


def test_a_guest_that_fails_is_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    """An observer that raises is logged once, with the hook's name, and is called no more; the kernel goes on."""
    guest = Notebook()
    guard = Observers([guest])
    guest.fails = True
    for _ in range(2):
        guard.delivered(DETAILS["delivered"])  # type: ignore[arg-type]
        guard.foreign(7)
    assert guest.heard == []
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "delivered" in line.message
    assert line.exc_info


def test_a_guest_surrounds_a_publish() -> None:
    """The trace that an observer yields is that of the events; it sees the publish's error and cannot hide it."""
    guest = Host()
    guard = Observers([guest])
    with guard.publishing(PUBLISHING) as trace:
        assert trace == TraceContext("00-8-9-01")
    error = KeyError()
    with pytest.raises(KeyError), guard.publishing(PUBLISHING):
        raise error
    assert guest.left == [None, error]


@pytest.mark.parametrize("fails", ["call", "enter", "exit"])
def test_a_guest_that_fails_around_a_publish(fails: str, caplog: pytest.LogCaptureFixture) -> None:
    """If an observer fails around a publish, the publish goes on with its producer's trace."""
    guard = Observers([Host(fails)])
    with guard.publishing(PUBLISHING) as trace:
        assert trace == (TraceContext("00-8-9-01") if fails == "exit" else THEIRS)
    with guard.publishing(PUBLISHING) as trace:
        assert trace == THEIRS
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "publishing" in line.message


def test_a_guest_that_fails_does_not_hide_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A publish that fails raises its own error, not the observer's."""
    with pytest.raises(KeyError), Observers([Host("exit")]).publishing(PUBLISHING):
        raise KeyError
    assert "switched off" in caplog.text


def test_every_hook_reaches_every_observer() -> None:
    """Each hook calls each observer of a list once, in the order of the list."""
    heard: list[tuple[str, str]] = []

    class Echo(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

    def hook_named(hook: str) -> Callable[..., None]:
        def noted(self: Echo, *details: object) -> None:
            heard.append((self.name, hook))

        return noted

    for hook in [*DETAILS, "slowed"]:
        setattr(Echo, hook, hook_named(hook))
    observers = Observers([Echo("first"), Echo("second")])
    for hook in DETAILS:
        getattr(observers, hook)(*details_of(hook))
    observers.slowed()
    assert heard == [(name, hook) for hook in [*DETAILS, "slowed"] for name in ("first", "second")]


def test_observers_nest_around_a_publish() -> None:
    """Each observer is given the trace context of the one before it, and the last one's travels with the events."""
    seen: list[TraceContext] = []

    class Inner(Observer):
        @contextmanager
        def publishing(self, publishing: Publishing) -> Iterator[TraceContext]:
            seen.append(publishing.trace)
            assert (publishing.types, publishing.id) == (["event"], "id-1")
            yield TraceContext("00-5-6-01")

    with Observers([Host(), Inner(), Inner()]).publishing(PUBLISHING) as trace:
        assert trace == TraceContext("00-5-6-01")
    assert seen == [TraceContext("00-8-9-01"), TraceContext("00-5-6-01")]


def test_the_first_choice_counts() -> None:
    """The context of a shared call is the first one that an observer chooses."""
    contexts = [copy_context(), copy_context()]

    class Chooser(Observer):
        def __init__(self, index: int) -> None:
            self.index = index

        def sharing(self, contexts: Sequence[Context], waited: Sequence[float]) -> Context | None:
            return contexts[self.index]

    assert Observers([Observer(), Chooser(1), Chooser(0)]).sharing(contexts, [0.1, 0.2]) is contexts[1]


@pytest.mark.parametrize("hook", ["sharing", "follows"])
def test_a_question_that_fails(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    """An observer that raises when it is asked is switched off, and the next one is asked."""

    class Asked(Observer):
        def __init__(self, *, fails: bool) -> None:
            self.fails = fails

        def sharing(self, contexts: Sequence[Context], waited: Sequence[float]) -> Context | None:
            if self.fails:
                raise ZeroDivisionError
            return contexts[0]

        def follows(self, traceparent: str) -> bool:
            if self.fails:
                raise ZeroDivisionError
            return True

    context = copy_context()
    observers = Observers([Asked(fails=True), Asked(fails=False)])
    for _ in range(2):
        if hook == "sharing":
            assert observers.sharing([context], [0.1]) is context
        else:
            assert observers.follows("00-1-2-01")
    assert caplog.text.count("switched off") == 1


def test_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    """When one observer is switched off, the others are still told."""
    failing, other = Notebook(), Notebook()
    failing.fails = True
    observers = Observers([failing, other])
    for _ in range(2):
        observers.delivered(DETAILS["delivered"])  # type: ignore[arg-type]
    assert other.heard == [DETAILS["delivered"]] * 2
    assert caplog.text.count("switched off") == 1

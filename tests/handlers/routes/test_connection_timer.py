"""The timer of a connection, on a fake event loop."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from handlers.routes.connection_timer import ConnectionTimer
from kernel.clients import IDLE_TIMEOUT, MAX_AGE, CloseReason


class FakeTimerHandle:
    """A call that is due at a time."""

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        """Cancel the call."""
        self.cancelled = True


class FakeLoop:
    """An event loop whose time only moves by `advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.handles: list[FakeTimerHandle] = []

    def time(self) -> float:
        """Return the fake time."""
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> FakeTimerHandle:
        """Schedule a call."""
        self.handles.append(FakeTimerHandle(when, call))
        return self.handles[-1]

    def advance(self, seconds: float) -> None:
        """Let time pass, and run the calls that become due."""
        end = self.now + seconds
        while self.pending and (first := min(self.pending, key=lambda handle: handle.due)).due <= end:
            self.handles.remove(first)
            self.now = max(self.now, first.due)
            first.call()
        self.now = end

    @property
    def pending(self) -> list[FakeTimerHandle]:
        """The calls that are scheduled."""
        return [handle for handle in self.handles if not handle.cancelled]


class FakeConnection:
    """A client, its sink, its hub and its timer, which records heartbeats and the close reason."""

    def __init__(self, loop: FakeLoop, *, max_age: float = 0.0) -> None:
        self.loop = loop
        self.blocked = False
        self.heartbeats: list[float] = []
        self.closed: tuple[float, CloseReason] | None = None
        self.sink = self.hub = self
        this = cast(Any, self)
        self.timer = ConnectionTimer(
            this, this, interval=30.0, idle_timeout=100.0, max_age=max_age, loop=cast(Any, loop)
        )

    def heartbeat(self, _: object) -> None:
        """Record a heartbeat."""
        self.heartbeats.append(self.loop.now - 1000.0)

    def close(self, reason: CloseReason) -> None:
        """Record when and why the connection was closed."""
        self.closed = (self.loop.now - 1000.0, reason)


@pytest.fixture
def loop() -> FakeLoop:
    """The event loop of the test."""
    return FakeLoop()


def test_heartbeats(loop: FakeLoop) -> None:
    """A client gets a heartbeat after each interval."""
    connection = FakeConnection(loop)
    loop.advance(99)
    assert (connection.heartbeats, connection.closed) == ([30.0, 60.0, 90.0], None)


def test_idle_timeout(loop: FakeLoop) -> None:
    """A client that sends no message for the idle timeout is closed, and its timer ends."""
    connection = FakeConnection(loop)
    loop.advance(200)
    assert connection.closed == (100.0, IDLE_TIMEOUT)
    assert loop.pending == []


def test_messages_restart_the_idle_timeout(loop: FakeLoop) -> None:
    """Each message of the client restarts the idle timeout."""
    connection = FakeConnection(loop)
    for _ in range(5):
        loop.advance(80)
        connection.timer.message_received()
    loop.advance(200)
    assert connection.closed == (500.0, IDLE_TIMEOUT)


def test_a_blocked_client(loop: FakeLoop) -> None:
    """A blocked client gets no heartbeats and is not idle; both resume when it is unblocked."""
    connection = FakeConnection(loop)
    connection.blocked = True
    loop.advance(299)
    assert (connection.heartbeats, connection.closed) == ([], None)
    connection.blocked = False
    loop.advance(200)
    assert connection.heartbeats[0] == 300.0
    assert connection.closed == (370.0, IDLE_TIMEOUT)


def test_max_age(loop: FakeLoop) -> None:
    """A connection is closed at its greatest age, however active the client is."""
    connection = FakeConnection(loop, max_age=250.0)
    for _ in range(10):
        loop.advance(40)
        connection.timer.message_received()
    assert connection.closed == (250.0, MAX_AGE)


def test_stop(loop: FakeLoop) -> None:
    """A timer that was stopped does nothing more."""
    connection = FakeConnection(loop, max_age=10.0)
    connection.timer.stop()
    loop.advance(1000)
    assert (connection.heartbeats, connection.closed) == ([], None)

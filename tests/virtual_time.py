"""Virtual time: an event loop whose clock moves only when nothing else is left to do.

A `VirtualTimeLoop` is an ordinary asyncio event loop with another clock. In each turn an event loop asks its selector
to wait until the next timer is due, then runs the callbacks that are ready. Here the selector does not wait. It moves
the clock to that timer and returns at once, so that a test may use the real intervals of the service, seconds or half
a minute, and still ends in milliseconds. The order of the callbacks depends on the test alone, so that every run of a
test is the same.

Consequences:

- Each turn of the loop takes 20 microseconds of virtual time, whatever is computed in it, so that tasks that never wait
  do not stop the clock. All other time passes in waiting for a timer (`asyncio.sleep`, `loop.call_later`).
- Where no callback is ready and no timer is set, another loop would hang for ever. This one raises `Deadlock`, which
  names the tasks that wait. A timer that only guards a test against hanging fires at once in that case.
- Sockets and threads live in real time, which this loop cannot wait for. It refuses them.

`eventually` waits for a condition without polling: it looks after every turn of the loop. `at_every_turn` calls a
function after every turn, for what must never be broken.
"""

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any, NoReturn

__all__ = ["Deadlock", "VirtualTimeLoop", "at_every_turn", "eventually"]

# The clock of a new loop, in seconds; not 0.0, which code under test might take for "never".
_START = 1000.0
# How long a turn takes at least, in seconds. If turns took no time, a task that does `sleep(0)` until a certain time
# would never get there, nor would code whose remaining time is too short for a timer.
_TURN = 20e-6


class Deadlock(AssertionError):
    """No callback is ready and no timer is set: the tasks of the loop would wait for ever."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no real time."""

    def __init__(self) -> None:
        self._now = _START
        # Functions to call after each turn; each returns True if it has made a callback ready.
        self.watchers: list[Callable[[], bool]] = []
        super().__init__(_InstantSelector(self))

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def end_turn(self, until_timer: float | None) -> None:
        """Call the watchers; then move the clock to the next timer, unless a callback is ready.

        `until_timer` is in seconds; it is 0.0 if a callback is ready, and None if none is and no timer is set.
        """
        made_ready = [watcher() for watcher in tuple(self.watchers)]
        if any(made_ready):
            until_timer = 0.0
        if until_timer is None:
            waiting = "\n".join(map(repr, asyncio.all_tasks(self)))
            raise Deadlock(f"nothing will ever happen again; these tasks wait:\n{waiting}")
        self._now += max(until_timer, _TURN)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., object], *args: object) -> NoReturn:
        """Refuse threads."""
        raise RuntimeError("virtual time cannot wait for a thread: mark the test with `real_time`")


class _InstantSelector(selectors.SelectSelector):
    """Moves the loop's clock instead of waiting; watches the loop's own wake-up socket and no other."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch the wake-up socket, which is the first one that the loop registers; refuse all others."""
        if self.get_map():
            raise RuntimeError("virtual time cannot wait for a socket: mark the test with `real_time`")
        return super().register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return at once."""
        self._loop.end_turn(timeout)
        return super().select(0)


@contextlib.contextmanager
def at_every_turn(check: Callable[[], object]) -> Iterator[None]:
    """Call a function after every turn of the running loop; what it raises ends the block at once, and is raised there.

    The function must not make anything happen.
    """
    task = asyncio.current_task()
    assert task is not None
    failures: list[Exception] = []

    def watch() -> bool:
        if failures:
            return False
        try:
            check()
        except Exception as error:
            # raised here, it would end the loop in the middle of the test
            failures.append(error)
            task.cancel()
        return bool(failures)

    with _watching(watch):
        try:
            yield
        finally:
            if failures:
                task.uncancel()
                raise failures.pop()


async def eventually(condition: Callable[[], object], seconds: float = 600.0) -> None:
    """Return as soon as a condition holds, checked at every turn of the loop; fail after `seconds` of virtual time."""
    if condition():
        return
    holds = asyncio.get_running_loop().create_future()

    def watch() -> bool:
        if holds.done():
            return False
        try:
            if not condition():
                return False
        except Exception as error:
            holds.set_exception(error)
        else:
            holds.set_result(None)
        return True

    with _watching(watch):
        try:
            async with asyncio.timeout(seconds):
                await holds
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s of virtual time") from None


@contextlib.contextmanager
def _watching(watcher: Callable[[], bool]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop), "not on virtual time"
    loop.watchers.append(watcher)
    try:
        yield
    finally:
        loop.watchers.remove(watcher)

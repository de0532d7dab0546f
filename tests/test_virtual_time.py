"""Virtual time: waiting takes none of the real one, keeps its order, and what would wait for ever is found out."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.virtual_time import Deadlock, VirtualTimeLoop, at_every_turn, eventually


def run(test: Coroutine[Any, Any, object]) -> float:
    """Run a coroutine on a loop of its own; return how many seconds of virtual time it took."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        begin = runner.get_loop().time()
        runner.run(test)
        return runner.get_loop().time() - begin


def test_waiting_takes_no_real_time() -> None:
    """A day passes at once."""
    begin = time.monotonic()
    assert run(asyncio.sleep(86_400)) == pytest.approx(86_400, abs=0.001)
    assert time.monotonic() - begin < 5


def test_timers_fire_in_their_order() -> None:
    """Timers fire in the order of their times, and the clock shows the time of each."""
    fired: list[tuple[float, str]] = []

    async def timers() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for seconds, name in ((30.0, "third"), (0.001, "first"), (5.0, "second")):
            loop.call_later(seconds, lambda name=name: fired.append((loop.time() - begin, name)))
        await asyncio.sleep(60)

    assert run(timers()) == pytest.approx(60, abs=0.001)
    assert fired == [
        (pytest.approx(0.001, abs=0.0001), "first"),
        (pytest.approx(5, abs=0.001), "second"),
        (pytest.approx(30, abs=0.001), "third"),
    ]


def test_a_task_that_never_waits_does_not_stop_the_clock() -> None:
    """Turns of the loop take a little time: a timer fires although a task is always ready to run."""

    async def busy() -> None:
        timer = asyncio.create_task(asyncio.sleep(0.01))
        turns = 0
        while not timer.done():
            await asyncio.sleep(0)
            turns += 1
        assert 400 < turns < 600

    assert run(busy()) == pytest.approx(0.01, rel=0.1)


def test_time_that_rounding_would_lose() -> None:
    """Code that sleeps until a certain time gets there, although the last of its sleeps are too short for a timer."""

    async def sleep_until(when: float) -> None:
        while (now := asyncio.get_running_loop().time()) < when:
            await asyncio.sleep(min(when - now, 1e-12))

    assert run(sleep_until(1000.001)) == pytest.approx(0.001, rel=0.2)


def test_timeouts() -> None:
    """A time-out ends what takes longer, and leaves alone what takes less."""

    async def bounded() -> None:
        async with asyncio.timeout(5):
            await asyncio.sleep(4.9)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()

    assert run(bounded()) == pytest.approx(9.9, abs=0.001)


def test_deadlock() -> None:
    """If every task waits for another and no timer is set, the test fails at once and names the tasks."""

    async def stuck() -> None:
        asyncio.current_task().set_name("the stuck one")  # type: ignore[union-attr]
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="the stuck one"):
        run(stuck())


def test_sockets_and_threads_are_refused() -> None:
    """Events of real time cannot be waited for on virtual time; the error says what to do."""

    async def wait() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(RuntimeError, match="real_time"):
            asyncio.get_running_loop().add_reader(server, print)
        with pytest.raises(RuntimeError, match="real_time"):
            await asyncio.to_thread(time.sleep, 0)

    run(wait())


def test_eventually() -> None:
    """A condition is noticed at the moment at which it begins to hold, without polling."""
    state: list[str] = []

    async def wait() -> None:
        asyncio.get_running_loop().call_later(25.0, state.append, "there")
        await eventually(lambda: state)
        await eventually(lambda: state)

    assert run(wait()) == pytest.approx(25, abs=0.001)


def test_eventually_looks_at_every_turn() -> None:
    """A condition that holds for no longer than one turn of the loop is noticed too."""
    state = [False]

    async def flicker() -> None:
        for value in (True, False):
            await asyncio.sleep(0)
            state[0] = value

    async def wait() -> None:
        flickering = asyncio.create_task(flicker())
        await eventually(lambda: state[0])
        await flickering

    assert run(wait()) < 0.001


def never() -> bool:
    """Return False."""
    return False


def broken() -> bool:
    """Fail."""
    raise ZeroDivisionError


@pytest.mark.parametrize(("condition", "error"), [(never, AssertionError), (broken, ZeroDivisionError)])
def test_eventually_fails(condition: Callable[[], bool], error: type[Exception]) -> None:
    """A condition that does not come to hold fails the test after its time; one that raises does so at once."""
    looked = 0

    def later() -> bool:
        nonlocal looked
        looked += 1
        return looked > 1 and condition()

    async def wait() -> None:
        with pytest.raises(error):
            await eventually(later, 30.0)

    assert run(wait()) == pytest.approx(30 if condition is never else 0, abs=0.001)


def test_at_every_turn() -> None:
    """A function is called after every turn of the loop; what it raises ends the block."""
    state = [0]

    def check() -> None:
        assert state[0] != 7, "seven"

    async def count() -> None:
        with at_every_turn(check):
            for _ in range(10):
                state[0] += 1
                await asyncio.sleep(0)

    with pytest.raises(AssertionError, match="seven"):
        run(count())
    assert state == [7]
    run(count())


def test_only_on_virtual_time() -> None:
    """On another loop nothing is awaited in vain: the caller is told."""
    with pytest.raises(AssertionError, match="not on virtual time"):
        asyncio.run(eventually(never))

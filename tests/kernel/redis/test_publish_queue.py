"""The publish queue: what goes together, how long a publish may take, and what fails with a call that fails."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any

import pytest

from kernel.errors import NotSent, TransportError, TransportUnavailable, WriteRefused
from kernel.redis.publish_queue import PendingPublish, PublishQueue
from kernel.resilience.circuit import CircuitState
from tests.transport_helpers import FRESH

DEADLINE = 4.0


class Sender:
    """Records the calls; each ends when `answer` or `break_off` is called, and the clock is what the test says."""

    def __init__(self, **bounds: int) -> None:
        self.calls: list[list[int]] = []
        self.seconds: list[float] = []
        self.now = 0.0
        self.queue = PublishQueue(self.send, DEADLINE, clock=lambda: self.now, **bounds)
        self._outcome: asyncio.Future[None] | None = None

    async def send(self, group: Sequence[PendingPublish], seconds: float) -> Sequence[str]:
        """Wait for the outcome."""
        self.calls.append([publish.events for publish in group])
        self.seconds.append(seconds)
        self._outcome = asyncio.get_running_loop().create_future()
        await self._outcome
        return [publish.record for publish in group]

    async def answer(self) -> None:
        """Let the call succeed."""
        assert self._outcome is not None
        self._outcome.set_result(None)
        await turns()

    async def break_off(self, error: TransportError) -> None:
        """Let the call fail."""
        assert self._outcome is not None
        self._outcome.set_exception(error)
        await turns()

    def put(self, events: int, size: int = 1) -> "asyncio.Task[Any]":
        """Publish this number of events and bytes."""
        put = self.queue.put(
            f"record {events}", ("id", 1000, "", b""), FRESH, events=events, size=size, context=copy_context()
        )
        return asyncio.create_task(put)


async def turns() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def under_way(*later: int) -> AsyncIterator[tuple[Sender, "asyncio.Task[Any]", "list[asyncio.Task[Any]]"]]:
    """Publish one event, whose call is not answered yet, and then others, which wait."""
    sender = Sender()
    first = sender.put(100)
    await turns()
    tasks = [sender.put(events) for events in later]
    await turns()
    assert sender.calls == [[100]]
    yield sender, first, tasks
    await sender.queue.close()
    await asyncio.gather(first, *tasks, return_exceptions=True)


async def test_all_that_wait_go_together() -> None:
    """Publishes that arrive while a call is in flight form the next one, in the order of their arrival."""
    async with under_way(3, 1, 2) as (sender, first, later):
        await sender.answer()
        assert await first == "record 100"
        assert sender.calls[1:] == [[3, 1, 2]]
        await sender.answer()
        assert await asyncio.gather(*later) == ["record 3", "record 1", "record 2"]
        again = sender.put(7)
        await turns()
        await sender.answer()
        assert await again == "record 7"


@pytest.mark.parametrize("bound", ["most_events", "most_bytes"])
async def test_bounds(bound: str) -> None:
    """A publish that does not fit waits for the next call, and none overtakes it; one that is too large goes alone."""
    sender = Sender(**{bound: 5})
    numbers = (2, 3, 1, 9, 1, 1, 4)
    tasks = [sender.put(number, number if bound == "most_bytes" else 1) for number in numbers]
    for _ in range(5):
        await turns()
        await sender.answer()
    await asyncio.gather(*tasks)
    assert sender.calls == [[2, 3], [1], [9], [1, 1], [4]]


async def test_one_deadline_for_waiting_and_call() -> None:
    """The call of a group may take what the oldest of its publishes has left of its deadline."""
    async with under_way(1) as (sender, _, later):
        sender.now = 1.5
        later.append(sender.put(2))
        await turns()
        sender.now = 1.75
        await sender.answer()
        assert sender.calls[1:] == [[1, 2]]
        assert sender.seconds == [DEADLINE, DEADLINE - 1.75]


async def test_waiting_too_long() -> None:
    """A publish that has waited for half its deadline fails as not sent; a younger one is sent."""
    async with under_way(1, 2) as (sender, first, later):
        sender.now = 1.0
        younger = sender.put(3)
        await turns()
        sender.now = 2.0
        await sender.answer()
        assert await first == "record 100"
        for late in later:
            with pytest.raises(NotSent, match=r"not sent within 2 s"):
                await late
        assert sender.calls[1:] == [[3]]
        await sender.answer()
        assert await younger == "record 3"


async def test_all_fail_with_the_link() -> None:
    """If Redis cannot be reached, all publishes that wait fail at once as not sent, and only the first may be sent."""
    async with under_way(1, 2) as (sender, first, later):
        await sender.break_off(TransportUnavailable("no answer"))
        with pytest.raises(TransportUnavailable, match="no answer") as failed:
            await first
        assert not isinstance(failed.value, NotSent)
        for late in later:
            with pytest.raises(NotSent, match="no answer"):
                await late
        assert len(sender.calls) == 1


async def test_a_refusal_does_not_stop_the_others() -> None:
    """If Redis refuses a call, the next one is made: it may be a refusal of that call alone."""
    async with under_way(1) as (sender, first, later):
        await sender.break_off(WriteRefused("OOM"))
        with pytest.raises(WriteRefused):
            await first
        await sender.answer()
        assert await later[0] == "record 1"


async def test_nothing_is_sent_behind_an_open_circuit() -> None:
    """When the circuit opens, publishes that wait fail as not sent, also if the failed call itself has opened it."""
    async with under_way(1) as (sender, first, later):
        sender.queue.circuit_changed(CircuitState.CLOSED)
        sender.queue.circuit_changed(CircuitState.OPEN)
        with pytest.raises(NotSent, match="circuit"):
            await later[0]
        await sender.answer()
        assert await first == "record 100"

    sender = Sender()

    async def publisher() -> None:
        with pytest.raises(WriteRefused):
            await sender.queue.put("", ("", 1, "", b""), FRESH, events=1, size=1, context=copy_context())
        sender.queue.circuit_changed(CircuitState.OPEN)

    publishing = asyncio.create_task(publisher())
    await turns()
    waiting = sender.put(2)
    await turns()
    await sender.break_off(WriteRefused("OOM"))
    await publishing
    with pytest.raises(NotSent, match="circuit"):
        await waiting
    assert sender.calls == [[1]]


async def test_giving_up() -> None:
    """Giving up fails every publish at once; one that was sent may have reached Redis, and its reply is ignored."""
    async with under_way(1) as (sender, first, later):
        sender.queue.give_up("the end")
        with pytest.raises(TransportUnavailable, match="the end") as failed:
            await first
        assert not isinstance(failed.value, NotSent)
        with pytest.raises(NotSent, match="the end"):
            await later[0]
        await sender.answer()
        again = sender.put(5)
        await turns()
        await sender.answer()
        assert await again == "record 5"


async def test_closing() -> None:
    """Closing leaves no publish and no task behind, at whatever moment, and the queue can be used again."""
    before = asyncio.all_tasks()
    sender = Sender()
    for turned in (0, 1, 5):
        publish = sender.put(1)
        for _ in range(turned):
            await asyncio.sleep(0)
        await sender.queue.close()
        await asyncio.sleep(0)
        if turned == 0:
            publish.cancel()
        with pytest.raises((TransportUnavailable, asyncio.CancelledError)):
            await publish
        await sender.queue.close()
    assert asyncio.all_tasks() == before


async def test_a_publish_while_it_closes() -> None:
    """A publish that arrives while the queue is closing fails instead of waiting for a task that has ended."""
    async with under_way() as (sender, first, _):
        closing = asyncio.create_task(sender.queue.close())
        late = sender.put(1)
        await asyncio.sleep(0)
        await closing
        for publish in (first, late):
            with pytest.raises(TransportUnavailable):
                await asyncio.wait_for(publish, 1)


async def test_an_unexpected_error() -> None:
    """If the call fails with an error that is none of a transport, no publish is left waiting."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with under_way(1) as (sender, first, later):
        await sender.break_off(ValueError("a bug"))  # type: ignore[arg-type]  # that is the point
        for publish in (first, *later):
            with pytest.raises(TransportUnavailable):
                await publish


async def test_cancelled_publishers() -> None:
    """A publish whose publisher is gone is not sent if it is first in line; a reply to it is dropped."""
    async with under_way(1, 2, 3) as (sender, first, later):
        first.cancel()
        later[0].cancel()
        await turns()
        await sender.answer()
        assert sender.calls[1:] == [[2, 3]]
        await sender.answer()
        assert await later[1] == "record 2"

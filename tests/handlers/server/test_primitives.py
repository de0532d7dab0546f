"""The event and the queue of a connection."""

import asyncio

import pytest

from handlers.server.primitives import SlimEvent, SlimQueue


async def _ticks(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_event() -> None:
    """Waiters pass while the event is set; a waiter that is cancelled does not affect the others."""
    event = SlimEvent()
    assert event.is_set()
    await event.wait()
    event.set()
    event.clear()
    event.clear()
    assert not event.is_set()
    waiting = [asyncio.create_task(event.wait()) for _ in range(3)]
    await _ticks()
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    await _ticks()
    assert waiting[0].cancelled()
    event.set()
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 5)


async def test_event_cleared_again() -> None:
    """An event that is cleared again before its waiters run holds them back."""
    event = SlimEvent()
    event.clear()
    waiting = asyncio.create_task(event.wait())
    await _ticks()
    event.set()
    event.clear()
    await _ticks()
    assert not waiting.done()
    event.set()
    await asyncio.wait_for(waiting, 5)


async def test_queue() -> None:
    """Items come out in order, whether the reader or the items were first."""
    queue = SlimQueue()
    assert queue.empty()
    reading = asyncio.create_task(queue.get())
    await _ticks()
    for number in range(3):
        queue.put_nowait(number)
    assert not queue.empty()
    assert await reading == 0
    assert [await queue.get(), await queue.get()] == [1, 2]
    assert queue.empty()


async def test_cancelled_reader() -> None:
    """A reader that is cancelled loses no item."""
    queue = SlimQueue()
    reading = asyncio.create_task(queue.get())
    await _ticks()
    reading.cancel()
    queue.put_nowait("a")
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await queue.get() == "a"

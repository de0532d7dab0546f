"""The gate and the inbox of a connection: nobody is forgotten, nothing is lost."""

import asyncio

import pytest

from handlers.server.primitives import SlimEvent, SlimQueue


async def _ticks(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_gate() -> None:
    """Section 9, slow clients: who waits for a socket passes when it is free, and at once while it is."""
    gate = SlimEvent()
    assert gate.is_set()
    await gate.wait()
    gate.set()
    gate.clear()
    gate.clear()
    assert not gate.is_set()
    waiting = [asyncio.create_task(gate.wait()) for _ in range(3)]
    await _ticks()
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    await _ticks()
    assert waiting[0].cancelled()
    gate.set()
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 5)


async def test_a_gate_that_closes_again() -> None:
    """Section 9, slow clients: a socket that is full again before anybody came through holds them all back."""
    gate = SlimEvent()
    gate.clear()
    waiting = asyncio.create_task(gate.wait())
    await _ticks()
    gate.set()
    gate.clear()
    await _ticks()
    assert not waiting.done()
    gate.set()
    await asyncio.wait_for(waiting, 5)


async def test_an_inbox() -> None:
    """Section 4: what a client sends is read in its order, whether or not the reader was there first."""
    inbox = SlimQueue()
    assert inbox.empty()
    reading = asyncio.create_task(inbox.get())
    await _ticks()
    for number in range(3):
        inbox.put_nowait(number)
    assert not inbox.empty()
    assert await reading == 0
    assert [await inbox.get(), await inbox.get()] == [1, 2]
    assert inbox.empty()


async def test_a_reader_that_gives_up() -> None:
    """Section 4: a reader that was cancelled takes nothing along."""
    inbox = SlimQueue()
    reading = asyncio.create_task(inbox.get())
    await _ticks()
    reading.cancel()
    inbox.put_nowait("a")
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await inbox.get() == "a"

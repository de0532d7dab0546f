"""Ending tasks: none is left, however it reacts to its cancellation."""

import asyncio

from kernel.resilience.tasks import end


async def _stubborn(losses: int) -> None:
    """Lose `count` cancellations, as `asyncio.wait_for` does before Python 3.12."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not losses:
                raise
            losses -= 1


async def _failing() -> None:
    raise ValueError("broken")


async def test_none_is_left() -> None:
    """Tasks end although one loses cancellations, one has failed and one is over."""
    over = asyncio.create_task(asyncio.sleep(0))
    tasks = [over, *(asyncio.create_task(_stubborn(losses)) for losses in (0, 1, 3)), asyncio.create_task(_failing())]
    await over
    async with asyncio.timeout(5):
        await end(tasks)
    assert all(task.done() for task in tasks)
    assert isinstance(tasks[-1].exception(), ValueError)


async def test_nothing_to_end() -> None:
    """Without a task there is nothing to wait for."""
    await end([])

"""Cancelling tasks reliably."""

import asyncio
from collections.abc import Iterable
from typing import Any

__all__ = ["end"]

_AGAIN_SECONDS = 0.1


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks and return when all of them have ended, whatever their outcome.

    Each task is cancelled again every 0.1 s until it ends. One cancellation is not enough: before Python 3.12,
    `asyncio.wait_for`, which redis-py uses, loses a cancellation that arrives in the same iteration of the event loop
    as the result that it waits for.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_SECONDS)

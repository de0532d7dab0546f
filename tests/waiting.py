"""Waiting for conditions with a deadline; a test never sleeps and hopes."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

__all__ = ["eventually"]


async def eventually(condition: Callable[[], object | Awaitable[object]], seconds: float = 5.0) -> None:
    """Wait until a condition, plain or async, is true; fails after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds:g} s"
        await asyncio.sleep(0.005)

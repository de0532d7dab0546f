"""Waiting for conditions with a deadline; a test never sleeps and hopes."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

__all__ = ["eventually", "wait_until"]


async def eventually(condition: Callable[[], object | Awaitable[object]], seconds: float = 5.0) -> None:
    """Wait in an event loop until a condition, plain or async, is true; fails after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds:g} s"
        await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition is true, without an event loop; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.01)

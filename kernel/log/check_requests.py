"""Requests for a position check: made when events may be missing, answered by the position check.

They are made by publishing, listening and clients, which do not import each other. So they are here, below all three.
"""

import asyncio
import contextlib

from kernel.resilience.circuit import CircuitState

__all__ = ["CheckRequests"]


class CheckRequests:
    """Passes requests to the position check, and its success back to the callers that wait for it.

    A request that is made during a check is for the next check: this one may have asked Redis before the request.
    """

    def __init__(self) -> None:
        self._requested = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._served: list[asyncio.Future[None]] = []

    def request(self) -> None:
        """Ask for a check as soon as possible."""
        self._requested.set()

    def circuit_changed(self, state: CircuitState) -> None:
        """Wake the position check, which makes the trial call or continues with its checks."""
        self.request()

    async def completed(self) -> None:
        """Return when a check that started after this call has succeeded, however long that takes."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self.request()
        await waiter

    # For the position check.

    async def wait(self, seconds: float) -> None:
        """Return at a request, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._requested.wait()

    def start(self) -> bool:
        """Note that a check starts; return True if a caller waits for its success."""
        self._requested.clear()
        self._served = [waiter for waiter in (*self._served, *self._waiting) if not waiter.done()]
        self._waiting.clear()
        return bool(self._served)

    def succeed(self) -> None:
        """Note that the check has succeeded."""
        for waiter in self._served:
            if not waiter.done():
                waiter.set_result(None)
        self._served.clear()

    def fail(self) -> None:
        """Note that the check has failed: its callers wait for the next one, which is due at once."""
        self.request()

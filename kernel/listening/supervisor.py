"""The supervisor: runs the subscription and the position check as tasks, and restarts one that ends.

Theory of operation
-------------------

Both parts run for ever and handle every error that they expect. A task that ends all the same was cancelled from
outside or failed unexpectedly; asyncio would let it rest, and this replica would fall silent while it looks alive.

States: *stopped*, *running*. Events:

    start()            stopped -> running: both tasks are created, and a position check is requested.
    a task ends        It is created again after `restart_delay` seconds, so that an error that repeats at once does not
                       cause a storm of restarts.
    interval is over   A position check is requested, however rarely the position check is due by itself.
    stop()             running -> stopped: the supervising task is ended first, or it would restart the others.

Invariant: there is at most one task of each part. A part that is not healthy is never replaced while its task runs; the
subscription and the position check recover by themselves, and two subscriptions would deliver twice.
"""

import asyncio
import logging

from kernel.listening.position_check import PositionCheck
from kernel.listening.subscription import Subscription
from kernel.log.check_requests import CheckRequests
from kernel.observer import Observer
from kernel.resilience.tasks import end

__all__ = ["Supervisor"]

_logger = logging.getLogger(__name__)


class Supervisor:
    """Owns the tasks of the subscription and of the position check.

    `interval` is the time between two requests for a position check, `restart_delay` the time before a task that ended
    is created again; both are in seconds. The tasks are named "event-broadcaster subscription", "event-broadcaster
    position check" and "event-broadcaster supervisor".
    """

    def __init__(
        self,
        subscription: Subscription,
        position_check: PositionCheck,
        *,
        checks: CheckRequests,
        observer: Observer,
        interval: float,
        restart_delay: float,
    ) -> None:
        self._subscription = subscription
        self._position_check = position_check
        self._parts: dict[str, Subscription | PositionCheck] = {
            "subscription": subscription,
            "position check": position_check,
        }
        self._checks = checks
        self._observer = observer
        self._interval = interval
        self._restart_delay = restart_delay
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._supervising: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """True if events arrive: subscribed, and a recent check compared the position with the one in Redis."""
        return self._subscription.subscribed.is_set() and self._position_check.recent

    def start(self) -> None:
        """Run both parts from now on, whether or not Redis can be reached."""
        self._checks.request()
        self._supervising = asyncio.create_task(self._supervise(), name="event-broadcaster supervisor")

    async def stop(self) -> None:
        """End every task."""
        await end(filter(None, [self._supervising]))
        await end(self._tasks.values())
        self._tasks.clear()
        self._supervising = None

    async def _supervise(self) -> None:
        while True:
            for name, part in self._parts.items():
                task = self._tasks.get(name)
                if task is None or task.done():
                    if task is not None:
                        _logger.error("the task of the %s ended; restarting it", name)
                        self._observer.listener_restarted("the task ended")
                        await asyncio.sleep(self._restart_delay)
                    self._tasks[name] = asyncio.create_task(part.run(), name=f"event-broadcaster {name}")
            await asyncio.wait(self._tasks.values(), timeout=self._interval, return_when=asyncio.FIRST_COMPLETED)
            self._checks.request()

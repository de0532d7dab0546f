"""The listening side of a replica without the rest, and what its tests share. No tests here."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kernel import Observer
from kernel.listening.deafness import DeafnessDetector
from kernel.listening.delivery import Delivery
from kernel.listening.position_check import PositionCheck
from kernel.listening.subscription import Subscription
from kernel.listening.supervisor import Supervisor
from kernel.log import AsgiEncoding
from kernel.log.check_requests import CheckRequests
from kernel.log.frames import Frame
from kernel.log.log import Log
from kernel.observer import CircuitMoved, Lost, Refilled, Written
from kernel.resilience.circuit import CircuitBreaker, CircuitState
from kernel.resilience.link import Link
from tests.fakes import FakeRedis, FakeTransport
from tests.kernel.replicas import PausableTransport, fill, tail
from tests.virtual_time import eventually

E1, E2, E3 = "epoch-1", "epoch-2", "epoch-3"

_PLAIN = AsgiEncoding(None, level=6)


class RecordingObserver(Observer):
    """Records what the listening side reports."""

    def __init__(self) -> None:
        self.refills: list[Refilled] = []
        self.losses: list[Lost] = []
        self.foreign_count = 0
        self.restarts: list[str] = []
        self.circuit_states: list[CircuitState] = []

    def refilled(self, refilled: Refilled) -> None:
        """Record it."""
        self.refills.append(refilled)

    def lost(self, lost: Lost) -> None:
        """Record it."""
        self.losses.append(lost)

    def foreign(self, count: int) -> None:
        """Add it up."""
        assert count > 0
        self.foreign_count += count

    def listener_restarted(self, reason: str) -> None:
        """Record it."""
        self.restarts.append(reason)

    def circuit_moved(self, moved: CircuitMoved) -> None:
        """Record it."""
        self.circuit_states.append(CircuitState(moved.after))


class ListeningSide:
    """Subscription, position check and supervisor on a fake Redis, with a fan-out that records instead of clients.

    `outline` is what a client would receive, in short: "251" for an event, "gap" and "epoch_changed" for markers,
    "open" and "closed" for the circuit. Times are in seconds. `clock_behind` is how far the link's clock is behind the
    event loop's.
    """

    written = Written(0, 0, 0)

    def __init__(
        self,
        transport: FakeTransport,
        observer: Observer,
        *,
        idle: float = 1.0,
        check_seconds: float = 60.0,
        recovery: float = 0.05,
        delays: tuple[float, float] = (0.01, 0.05),
    ) -> None:
        self.outline: list[str] = []
        self.clock_behind = 0.0
        self._transport = transport
        self.log = Log(transport, 20)
        self.checks = CheckRequests()
        self.link = Link(CircuitBreaker(5, recovery), observer=observer, clock=self.clock, watchers=(self, self.checks))
        delivery = Delivery(self.log, self, self, observer=observer, chunk=1000, clock=self.clock)
        deafness = DeafnessDetector(idle)
        self.position_check = PositionCheck(
            transport,
            self.log,
            self.link,
            delivery,
            deafness,
            checks=self.checks,
            observer=observer,
            check_seconds=check_seconds,
            delays=delays,
        )
        self.subscription = Subscription(
            transport,
            self.log,
            self.link,
            delivery,
            self.position_check,
            deafness,
            checks=self.checks,
            observer=observer,
            idle=idle,
            delays=delays,
        )
        self.supervisor = Supervisor(
            self.subscription,
            self.position_check,
            checks=self.checks,
            observer=observer,
            interval=60.0,
            restart_delay=delays[0],
        )

    @property
    def degraded(self) -> bool:
        """True unless the circuit is closed."""
        return self.link.status.state is not CircuitState.CLOSED

    def clock(self) -> float:
        """Return the time of the link."""
        return asyncio.get_running_loop().time() - self.clock_behind

    async def start(self) -> None:
        """Make first contact and subscribe."""
        await self.position_check.reach()
        self.link.connected()
        self.supervisor.start()
        await self.subscription.subscribed.wait()

    async def stop(self) -> None:
        """End every task."""
        await self.supervisor.stop()
        await self.log.close()
        await self._transport.close()

    # the neighbours of the listening side

    async def deliver(self, frames: list[Frame], begin: float) -> "ListeningSide":
        """Record the frames."""
        for frame in frames:
            message = json.loads(frame.ready(_PLAIN))
            self.outline.append(str(message.get("sequence", message.get("type"))))
        return self

    def recipients(self, frame: Frame) -> int:
        """Return 0: there are no clients."""
        return 0

    def wake(self) -> None:
        """Do nothing: there are no publishers."""

    def circuit_changed(self, state: CircuitState) -> None:
        """Record it."""
        self.outline.append(state.value)


@asynccontextmanager
async def listening_side(
    redis: FakeRedis,
    observer: Observer | None = None,
    *,
    idle: float = 1.0,
    check_seconds: float = 60.0,
    recovery: float = 0.05,
    delays: tuple[float, float] = (0.01, 0.05),
) -> AsyncIterator[ListeningSide]:
    """Run a listening side, from after the check that follows the subscription."""
    side = ListeningSide(
        PausableTransport(redis),
        observer or Observer(),
        idle=idle,
        check_seconds=check_seconds,
        recovery=recovery,
        delays=delays,
    )
    await side.start()
    try:
        await side.checks.completed()
        side.outline.clear()
        yield side
    finally:
        await side.stop()


def task_of(part: str) -> "asyncio.Task[None]":
    """Return the running task of a part, by the name that the supervisor gives it."""
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == f"event-broadcaster {part}"]
    return task


def document(*numbers: int, epoch: str = E1, id: str = "forged") -> bytes:
    """Return an announcement that does not come from a replica."""
    events = b",".join(b'{"sequence":%d%s' % (number, tail(id)) for number in numbers)
    return b'{"epoch":"%s","events":[%s]}' % (epoch.encode(), events)


def fill_unannounced(redis: FakeRedis, count: int) -> None:
    """Publish events whose announcements are lost."""
    redis.deaf = True
    fill(redis, count)
    redis.deaf = False


async def checks_made(redis: FakeRedis, count: int) -> None:
    """Return when this number of further position checks has asked Redis."""
    before = redis.calls.count("position")
    await eventually(lambda: redis.calls.count("position") >= before + count)

"""Delivery: frames enter the log and reach the live clients by one way, run by run."""

import asyncio
from collections.abc import Iterable

import pytest

from kernel.listening.delivery import Delivery
from kernel.log.envelope import Announcement
from kernel.log.frames import Frame
from kernel.log.log import Log
from kernel.observer import Delivered, Observer, Written
from kernel.position import Position
from tests.fakes import FakeRedis, FakeTransport, entry

E1 = "epoch-1"
BEGIN = Position(E1, 240)


class RecordingFanOut:
    """Records what it is to write, and whether that was in the log by then; each run takes `turns` of the loop."""

    def __init__(self, log: Log) -> None:
        self.runs: list[list[Position]] = []
        self.begins: list[float] = []
        self.turns = 0
        self._log = log

    async def deliver(self, frames: list[Frame], begin: float) -> "RecordingFanOut":
        """Record the run."""
        assert frames[-1].place == self._log.place
        self.runs.append([frame.place for frame in frames])
        self.begins.append(begin)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return self

    written = Written(3, 2, 1)

    def recipients(self, frame: Frame) -> int:
        """Return a number."""
        return 1


class RecordingFlowControl:
    """Records the position at each wake."""

    def __init__(self, log: Log) -> None:
        self.woken: list[Position] = []
        self._log = log

    def wake(self) -> None:
        """Record it."""
        self.woken.append(self._log.place)


class RecordingObserver(Observer):
    """Records deliveries."""

    def __init__(self) -> None:
        self.deliveries: list[Delivered] = []

    def delivered(self, delivered: Delivered) -> None:
        """Record it."""
        self.deliveries.append(delivered)


class Parts:
    """A delivery with recording neighbours, whose log ends at event 240; each event is a run of its own."""

    def __init__(self) -> None:
        self.log = Log(FakeTransport(FakeRedis()), 20)
        self.log.ring.start(BEGIN)
        self.fan_out = RecordingFanOut(self.log)
        self.flow_control = RecordingFlowControl(self.log)
        self.observer = RecordingObserver()
        self.now = 100.0
        self.delivery = Delivery(
            self.log, self.fan_out, self.flow_control, observer=self.observer, chunk=1, clock=self.clock
        )

    def clock(self) -> float:
        """Return the time, one second later at each call."""
        self.now += 1
        return self.now


@pytest.fixture
def parts() -> Parts:
    """Return a delivery and its neighbours."""
    return Parts()


def events(numbers: Iterable[int]) -> list[Frame]:
    """Return the frames of events."""
    return [Frame.of(E1, entry(number)) for number in numbers]


async def test_run_by_run(parts: Parts) -> None:
    """Each run is in the log when it is handed to the live clients, and the next one is not yet."""
    await parts.delivery.deliver(events([241, 242]))
    assert parts.fan_out.runs == [[Position(E1, 241)], [Position(E1, 242)]]
    assert parts.log.place == Position(E1, 242)


async def test_one_report_for_each_batch(parts: Parts) -> None:
    """Observers are given the sums over all runs of a batch, once, after the last run."""
    await parts.delivery.deliver(events([241, 242, 243]))
    (delivered,) = parts.observer.deliveries
    assert (delivered.first, delivered.last) == (BEGIN, Position(E1, 243))
    assert (delivered.events, delivered.written) == (3, Written(9, 6, 3))
    assert delivered.begin == 101.0 == parts.fan_out.begins[0]
    assert set(parts.fan_out.begins) == {delivered.begin}
    assert delivered.end == parts.now


async def test_flow_control_is_woken_after_a_delivery(parts: Parts) -> None:
    """Publishes that wait are let through once for each batch, when all of it is delivered."""
    await parts.delivery.deliver(events([241, 242]))
    assert parts.flow_control.woken == [Position(E1, 242)]


async def test_what_follows_is_delivered(parts: Parts) -> None:
    """Of the announcements that arrive, those that follow the log are delivered; the others are returned."""
    announcements = [
        Announcement(E1, [entry(241), entry(242)]),
        Announcement(E1, [entry(999)]),
        Announcement("other", [entry(243)]),
    ]
    offered = await parts.delivery.offer(announcements)
    assert offered.misfits == [Position(E1, 999), Position("other", 243)]
    assert parts.log.place == Position(E1, 242)
    assert len(parts.observer.deliveries) == 1


async def test_nothing_follows(parts: Parts) -> None:
    """If nothing that arrived follows the log, nothing is delivered and nothing is reported."""
    assert await parts.delivery.offer([Announcement(E1, [entry(240)])]) == ([], [], 0)
    assert (parts.fan_out.runs, parts.observer.deliveries, parts.flow_control.woken) == ([], [], [])


async def test_start(parts: Parts) -> None:
    """The first contact fills the log without a delivery, and tells clients that are already here the epoch."""
    await parts.delivery.start(BEGIN, events(range(241, 251)))
    assert parts.fan_out.runs == [[Position(E1, 250)]]
    assert parts.log.ring.base == BEGIN
    assert parts.observer.deliveries == []
    assert parts.flow_control.woken == [Position(E1, 250)]


async def test_cancelled(parts: Parts) -> None:
    """A run that a cancelled delivery did not reach is not in the log, so that the next position check fetches it."""
    parts.fan_out.turns = 3
    delivery = asyncio.create_task(parts.delivery.deliver(events(range(241, 245))))
    while len(parts.fan_out.runs) < 2:
        await asyncio.sleep(0)
    delivery.cancel()
    await asyncio.wait([delivery])
    assert delivery.cancelled()
    assert parts.log.place == Position(E1, 242)
    assert parts.observer.deliveries == []
    await parts.delivery.deliver(events([243, 244]))
    assert parts.observer.deliveries[-1].last == Position(E1, 244)


async def test_the_loop_turns_between_runs(parts: Parts) -> None:
    """A refill of megabytes does not hold up the event loop, even if no client is connected."""
    delivery = asyncio.create_task(parts.delivery.deliver(events(range(241, 251))))
    places = set()
    while not delivery.done():
        await asyncio.sleep(0)
        places.add(parts.log.place.sequence)
    assert len(places) == 10

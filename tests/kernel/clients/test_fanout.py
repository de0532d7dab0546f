"""Fan-out: a walk reaches every live client once, whatever happens between its steps."""

import pytest

from kernel.clients import fanout
from kernel.clients.audiences import Audiences
from kernel.clients.client import Client, Delivery
from kernel.clients.fanout import Walk
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.log.encodings import AsgiEncoding, Encoding, WireEncoding
from kernel.log.frames import Frame
from kernel.position import Position
from tests.fakes import FakeSink, entry

WIRE = WireEncoding(None, deflate=False, level=6)
ASGI = AsgiEncoding(None, level=6)
ALERTS, NOTHING = Patterns.of(["alert.*"]), Patterns.of([])


def frames(first: int, last: int, type: str = "event", data: str = "{}") -> list[Frame]:
    """Return the frames of consecutive events."""
    return [Frame.of("e", entry(number, type=type, data=data)) for number in range(first, last + 1)]


class Fanout:
    """Live clients in their audiences, as the hub keeps them; all of them stand at the end of the log."""

    def __init__(self) -> None:
        self.audiences: Audiences[Client, Encoding] = Audiences()
        self.here = Position("e", 0)
        self.clients: list[tuple[Client, FakeSink]] = []
        self.current: Walk | None = None

    def join(self, patterns: Patterns = EVERYTHING, encoding: Encoding = WIRE) -> tuple[Client, FakeSink]:
        """Add a live client."""
        sink = FakeSink()
        client = Client(f"c{len(self.clients)}", sink, encoding, self.here, patterns)
        client.delivery = Delivery.LIVE
        client.audience = self.audiences.join(client, patterns, encoding)
        if self.current is not None:
            self.current.pass_over(client)
        self.clients.append((client, sink))
        return client, sink

    def walk(self, *runs: list[Frame]) -> Walk:
        """Append these frames to the log and start to deliver them."""
        frames = [frame for run in runs for frame in run]
        self.here = frames[-1].place
        self.current = Walk(frames, self.audiences)
        return self.current


@pytest.fixture
def fleet() -> Fanout:
    """Return a fan-out without clients."""
    return Fanout()


def steps(walk: Walk) -> int:
    """Walk to the end, and return how often the event loop could run."""
    return sum(1 for _ in walk)


def test_one_write_a_client(fleet: Fanout) -> None:
    """However many frames there are, each live client gets one write and then stands where the log ends."""
    for encoding in (WIRE, WIRE, ASGI):
        fleet.join(encoding=encoding)
    walk = fleet.walk(frames(1, 5))
    steps(walk)
    for client, sink in fleet.clients:
        assert (sink.numbers, sink.writes) == ([1, 2, 3, 4, 5], 1)
        assert client.place == walk.end == fleet.here
    assert walk.written.messages == 15


def test_filters(fleet: Fanout) -> None:
    """Each audience gets what its patterns let through, and markers; what it does not get counts as passed."""
    everything, alerts, nothing = (fleet.join(patterns)[1] for patterns in (EVERYTHING, ALERTS, NOTHING))
    walk = fleet.walk(frames(1, 2), frames(3, 3, "alert_created"), [Frame.gap("e", 4, 6)])
    steps(walk)
    assert everything.outline == ["1", "2", "3", "gap 4-6"]
    assert alerts.outline == ["3", "gap 4-6"]
    assert nothing.outline == ["gap 4-6"]
    assert walk.written.messages == 7
    steps(fleet.walk(frames(7, 7)))
    assert (alerts.writes, nothing.writes) == (1, 1)
    assert all(client.place == fleet.here for client, _ in fleet.clients)


def test_the_same_bytes_for_an_audience(fleet: Fanout) -> None:
    """Frames are filtered and joined once for an audience, so its clients get the same object."""
    taken: list[object] = []

    class Memory(FakeSink):
        """Keeps what it was given."""

        def write(self, data: object) -> None:
            """Keep it."""
            taken.append(data)

    for _ in range(3):
        client, _ = fleet.join()
        client.sink = Memory()
    steps(fleet.walk(frames(1, 3)))
    assert len(taken) == 3
    assert taken[0] is taken[1] is taken[2]


def test_it_yields_by_writes(fleet: Fanout) -> None:
    """The event loop runs after one or two hundred writes, so that a large fleet does not hold up the rest."""
    for _ in range(1000):
        fleet.join()
    walk = iter(fleet.walk(frames(1, 1)))
    next(walk)
    assert 100 <= sum(len(sink.numbers) for _, sink in fleet.clients) <= 200
    assert len(list(walk)) >= 1
    assert all(sink.numbers == [1] for _, sink in fleet.clients)


def test_it_yields_by_bytes(fleet: Fanout) -> None:
    """The event loop runs after one or two megabytes, however few clients they went to."""
    for _ in range(10):
        fleet.join()
    data = '"%s"' % ("x" * 1024 * 1024)
    walk = iter(fleet.walk(frames(1, 1, data=data)))
    next(walk)
    assert 1 <= sum(len(sink.numbers) for _, sink in fleet.clients) <= 3


def test_it_yields_by_audiences(fleet: Fanout) -> None:
    """The event loop runs after one or two hundred audiences, even if no frame is for them."""
    for number in range(1000):
        fleet.join(Patterns.of([f"unknown{number}"]))
    assert steps(fleet.walk(frames(1, 1))) >= 2


def test_joining_meanwhile(fleet: Fanout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that joins during a walk gets nothing of it, and everything after it."""
    monkeypatch.setattr(fanout, "WRITES", 1)
    fleet.join()
    fleet.join(ALERTS)
    walk = iter(fleet.walk(frames(1, 1)))
    next(walk)
    _, old_audience = fleet.join(ALERTS)
    _, new_audience = fleet.join(NOTHING)
    _, same_audience = fleet.join()
    assert len(list(walk)) >= 1
    assert old_audience.numbers == new_audience.numbers == same_audience.numbers == []
    steps(fleet.walk(frames(2, 2)))
    assert same_audience.numbers == [2]
    assert fleet.clients[0][1].numbers == [1, 2]


def test_leaving_meanwhile(fleet: Fanout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves during a walk before it is reached is not written to, and its place stays."""
    monkeypatch.setattr(fanout, "WRITES", 1)
    for _ in range(3):
        fleet.join()
    start = fleet.here
    walk = fleet.walk(frames(1, 1))
    going = iter(walk)
    next(going)
    client, sink = fleet.clients[1]
    assert client.audience is not None
    fleet.audiences.leave(client, client.audience)
    walk.pass_over(client)
    assert len(list(going)) >= 1
    assert (sink.numbers, client.place) == ([], start)
    assert [sink.numbers for _, sink in fleet.clients] == [[1], [], [1]]


def test_reaching_out_of_turn(fleet: Fanout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is given its frames early is skipped by the walk, and no client is given them twice."""
    monkeypatch.setattr(fanout, "WRITES", 1)
    for _ in range(3):
        fleet.join()
    walk = fleet.walk(frames(1, 2))
    going = iter(walk)
    next(going)
    for client, _ in fleet.clients:
        walk.reach(client)
        assert client.place == walk.end
    assert len(list(going)) == 0
    assert [(sink.numbers, sink.writes) for _, sink in fleet.clients] == [([1, 2], 1)] * 3
    assert walk.written.messages == 6

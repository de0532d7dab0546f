"""The walk: every live client once, whatever happens between its steps."""

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


class World:
    """Live clients in their audiences, all of them at the end of the log."""

    def __init__(self) -> None:
        self.audiences: Audiences[Client, Encoding] = Audiences()
        self.here = Position("e", 0)
        self.clients: list[tuple[Client, FakeSink]] = []

    def join(self, patterns: Patterns = EVERYTHING, encoding: Encoding = WIRE) -> tuple[Client, FakeSink]:
        """Let one more be live."""
        sink = FakeSink()
        client = Client(f"c{len(self.clients)}", sink, encoding, self.here, patterns)
        client.delivery = Delivery.LIVE
        client.audience = self.audiences.join(client, patterns, encoding)
        self.clients.append((client, sink))
        return client, sink

    def walk(self, *runs: list[Frame]) -> Walk:
        """Begin to deliver these frames; from now on the log ends behind them."""
        start, news = self.here, [frame for run in runs for frame in run]
        self.here = news[-1].place
        return Walk(news, start, self.audiences)


@pytest.fixture
def world() -> World:
    """Return a world without clients."""
    return World()


def steps(walk: Walk) -> int:
    """Walk to the end, and return how often the loop could turn."""
    return sum(1 for _ in walk)


def test_one_write_a_client(world: World) -> None:
    """Section 9: however many frames there are, each live client gets one write, and stands where the log ends."""
    for encoding in (WIRE, WIRE, ASGI):
        world.join(encoding=encoding)
    walk = world.walk(frames(1, 5))
    steps(walk)
    for client, sink in world.clients:
        assert (sink.numbers, sink.writes) == ([1, 2, 3, 4, 5], 1)
        assert client.place is walk.end is world.here
    assert walk.written.messages == 15


def test_filters(world: World) -> None:
    """Section 5, subscriptions: each audience gets what matches, what does not counts as passed, markers go to all."""
    everything, alerts, nothing = (world.join(patterns)[1] for patterns in (EVERYTHING, ALERTS, NOTHING))
    walk = world.walk(frames(1, 2), frames(3, 3, "alert_created"), [Frame.gap("e", 4, 6)])
    steps(walk)
    assert everything.outline == ["1", "2", "3", "gap 4-6"]
    assert alerts.outline == ["3", "gap 4-6"]
    assert nothing.outline == ["gap 4-6"]
    assert walk.written.messages == 7
    steps(world.walk(frames(7, 7)))
    assert (alerts.writes, nothing.writes) == (1, 1)
    assert all(client.place is world.here for client, _ in world.clients)


def test_the_same_bytes_for_an_audience(world: World) -> None:
    """Section 9: filters and joins cost per audience, so that equal clients get the very same object."""
    taken: list[object] = []

    class Memory(FakeSink):
        """Keeps what it was given."""

        def write(self, data: object) -> None:
            """Keep it."""
            taken.append(data)

    for _ in range(3):
        client, _ = world.join()
        client.sink = Memory()
    steps(world.walk(frames(1, 3)))
    assert len(taken) == 3
    assert taken[0] is taken[1] is taken[2]


def test_it_yields_by_writes(world: World) -> None:
    """Section 9: the loop turns after a hundred writes or two, so that a large fleet does not hold up the rest."""
    for _ in range(1000):
        world.join()
    walk = iter(world.walk(frames(1, 1)))
    next(walk)
    assert 100 <= sum(len(sink.numbers) for _, sink in world.clients) <= 200
    assert len(list(walk)) >= 1
    assert all(sink.numbers == [1] for _, sink in world.clients)


def test_it_yields_by_bytes(world: World) -> None:
    """Section 9: the loop turns after a megabyte or two, however few clients they went to."""
    for _ in range(10):
        world.join()
    data = '"%s"' % ("x" * 1024 * 1024)
    walk = iter(world.walk(frames(1, 1, data=data)))
    next(walk)
    assert 1 <= sum(len(sink.numbers) for _, sink in world.clients) <= 3


def test_it_yields_by_audiences(world: World) -> None:
    """Section 9: audiences that want nothing of it cost time too."""
    for number in range(1000):
        world.join(Patterns.of([f"unknown{number}"]))
    assert steps(world.walk(frames(1, 1))) >= 2


def test_joining_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 6: who joins during a walk stands behind it and gets what comes after, without hole or repeat."""
    monkeypatch.setattr(fanout, "_WRITES", 1)
    world.join()
    world.join(ALERTS)
    walk = iter(world.walk(frames(1, 1)))
    next(walk)
    _, old_audience = world.join(ALERTS)
    _, new_audience = world.join(NOTHING)
    _, same_audience = world.join()
    assert len(list(walk)) >= 1
    assert old_audience.numbers == new_audience.numbers == same_audience.numbers == []
    steps(world.walk(frames(2, 2)))
    assert same_audience.numbers == [2]
    assert world.clients[0][1].numbers == [1, 2]


def test_leaving_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: who leaves the live ones during a walk is not written to, and its place shows what it has."""
    monkeypatch.setattr(fanout, "_WRITES", 1)
    for _ in range(3):
        world.join()
    start = world.here
    walk = iter(world.walk(frames(1, 1)))
    next(walk)
    client, sink = world.clients[1]
    assert client.audience is not None
    world.audiences.leave(client, client.audience)
    client.place = Position(*client.place)
    assert len(list(walk)) >= 1
    assert (sink.numbers, client.place) == ([], start)
    assert [sink.numbers for _, sink in world.clients] == [[1], [], [1]]


def test_reaching_out_of_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: one client can be given its part early, and is then passed over; nobody is given it twice."""
    monkeypatch.setattr(fanout, "_WRITES", 1)
    for _ in range(3):
        world.join()
    walk = world.walk(frames(1, 2))
    going = iter(walk)
    next(going)
    for client, _ in world.clients:
        walk.reach(client)
        assert client.place is walk.end
    assert len(list(going)) == 0
    assert [(sink.numbers, sink.writes) for _, sink in world.clients] == [([1, 2], 1)] * 3
    assert walk.written.messages == 6

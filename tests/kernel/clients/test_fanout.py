"""Fan-out: a walk reaches every live client once, whatever happens between its steps."""

from collections.abc import Iterator

import pytest

from kernel.clients import fanout, pace
from kernel.clients.audiences import Audiences
from kernel.clients.client import Client, ClientState
from kernel.clients.fanout import Walk
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.log.encodings import AsgiEncoding, Encoding, Joined, WireEncoding
from kernel.log.frames import Frame
from kernel.position import Position
from tests.fakes import FakeSink, entry

WIRE = WireEncoding(None, deflate=False, level=6)
ASGI = AsgiEncoding(None, level=6)
ALERTS, NOTHING = Patterns.of(["alert.*"]), Patterns.of([])


def frames(first: int, last: int, type: str = "event", data: str = "{}", traceparent: str | None = None) -> list[Frame]:
    """Return the frames of consecutive events."""
    numbers = range(first, last + 1)
    return [Frame.of("e", entry(number, type=type, data=data, traceparent=traceparent)) for number in numbers]


class TimedSink(FakeSink):
    """A socket of which each write takes time on the fan-out's clock."""

    def __init__(self, fleet: "Fanout") -> None:
        super().__init__()
        self._fleet = fleet

    def write(self, data: Joined) -> None:
        """Take messages, and let time pass."""
        super().write(data)
        self._fleet.now += self._fleet.write_seconds


class SlowEncoding(AsgiEncoding):
    """An encoding that takes some steps of 1 ms for each message."""

    def __init__(self, fleet: "Fanout", steps: int = 1) -> None:
        super().__init__(None, level=6)
        self._fleet = fleet
        self._steps = steps

    def steps(self, json: bytes, place: Position | None = None) -> Iterator[bytes | str | None]:
        """Encode a message, and let time pass."""
        for step in range(self._steps):
            if step:
                yield None
            self._fleet.now += 0.001
        yield from super().steps(json)


class Fanout:
    """Live clients in their audiences, as the hub keeps them; all of them stand at the end of the log."""

    def __init__(self) -> None:
        self.now = 0.0
        self.write_seconds = 0.0
        self.timer = lambda: self.now
        self.audiences: Audiences[Client, Encoding] = Audiences()
        self.here = Position("e", 0)
        self.clients: list[tuple[Client, FakeSink]] = []
        self.current: Walk | None = None

    def join(self, patterns: Patterns = EVERYTHING, encoding: Encoding = WIRE) -> tuple[Client, FakeSink]:
        """Add a live client."""
        sink = TimedSink(self)
        client = Client(f"c{len(self.clients)}", sink, encoding, self.here, patterns)
        client.state = ClientState.LIVE
        client.audience = self.audiences.join(client, patterns, encoding)
        if self.current is not None:
            self.current.pass_over(client)
        self.clients.append((client, sink))
        return client, sink

    def walk(self, *runs: list[Frame]) -> Walk:
        """Append these frames to the log and start to deliver them."""
        frames = [frame for run in runs for frame in run]
        self.here = frames[-1].place
        self.current = Walk(frames, self.audiences, lambda: self.timer())
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


def test_it_yields_by_the_time_that_writes_take(fleet: Fanout) -> None:
    """The event loop runs every 2 ms or little later, so that a large fleet does not hold up the rest."""
    for _ in range(1000):
        fleet.join()
    fleet.write_seconds = 0.00001
    walk = iter(fleet.walk(frames(1, 1)))
    next(walk)
    assert 200 <= sum(len(sink.numbers) for _, sink in fleet.clients) <= 220
    assert len(list(walk)) >= 3
    assert all(sink.numbers == [1] for _, sink in fleet.clients)


def test_it_does_not_yield_while_there_is_time(fleet: Fanout) -> None:
    """A small fleet is written to in one step."""
    for _ in range(1000):
        fleet.join()
    assert steps(fleet.walk(frames(1, 1))) == 0


def test_it_looks_at_the_clock_after_each_large_write(fleet: Fanout) -> None:
    """Large writes take long, so time is looked at after each of them."""
    for _ in range(10):
        fleet.join()
    fleet.write_seconds = 0.003
    assert steps(fleet.walk(frames(1, 1, data='"%s"' % ("x" * 1024 * 1024)))) == 10


def test_it_looks_at_the_clock_after_each_write_of_many_messages(fleet: Fanout) -> None:
    """A sink that takes messages one by one, as a page does, takes long for many of them."""
    for _ in range(10):
        fleet.join(encoding=ASGI)
    fleet.write_seconds = 0.003
    assert steps(fleet.walk(frames(1, 100))) == 10


@pytest.mark.parametrize(("pattern", "recipients"), [("unknown", 0), ("event", 1000)])
def test_it_yields_between_audiences(fleet: Fanout, pattern: str, recipients: int) -> None:
    """Time is looked at now and then between audiences too, also if no frame is for them or recipients are counted."""
    for number in range(1000):
        fleet.join(Patterns.of([pattern, f"unknown{number}"]))
    steps(fleet.walk(frames(1, 1)))
    now = iter(range(10_000))
    fleet.timer = lambda: float(next(now))
    traced = frames(2, 2, traceparent="00-1-2-01")
    walk = fleet.walk(traced)
    assert 20 <= steps(walk) <= 100 + recipients // 16
    assert walk.recipients(traced[0]) == recipients


@pytest.mark.parametrize("encoded", [1, 20])
def test_it_yields_while_it_encodes_one_message(fleet: Fanout, encoded: int) -> None:
    """When one large message must be compressed, the event loop runs in between, and all clients get it in order."""
    encoding = SlowEncoding(fleet, steps=20)
    for _ in range(3):
        fleet.join(encoding=encoding)
    walk = fleet.walk(frames(1, encoded))
    assert steps(walk) == 10 * encoded
    assert [sink.numbers for _, sink in fleet.clients] == [list(range(1, encoded + 1))] * 3


def test_reaching_is_refused(fleet: Fanout) -> None:
    """A client is not given frames out of turn that must be compressed first; the walk writes them later."""
    fleet.join(encoding=SlowEncoding(fleet, steps=20))
    client, sink = fleet.clients[0]
    walk = fleet.walk(frames(1, 1))
    assert not walk.reach(client)
    assert (fleet.now, sink.writes, walk.written.messages) == (0.0, 0, 0)
    steps(walk)
    assert (sink.numbers, walk.written.messages) == ([1], 1)


def test_it_yields_while_it_encodes(fleet: Fanout) -> None:
    """When many frames must be encoded for the first time, the event loop runs in between."""
    fleet.join(encoding=SlowEncoding(fleet))
    _, sink = fleet.clients[0]
    assert steps(fleet.walk(frames(1, 20))) == 10
    assert sink.numbers == list(range(1, 21))


def test_it_yields_while_it_compares_patterns(fleet: Fanout) -> None:
    """When hostile patterns must be compared with long names, the event loop runs in between, and again next time."""
    hostile = [Patterns.of(["*a" * 126 + f"{client:02}{number:02}" for number in range(100)]) for client in range(3)]
    for patterns in hostile:
        fleet.join(patterns)
    _, sink = fleet.join(Patterns.of(["worker.a*"]))
    now = iter(range(100_000))
    fleet.timer = lambda: float(next(now))
    worker = {"type": "worker_status", "traceparent": "00-1-2-01"}
    long = Frame.of("e", entry(1, event_type="worker." + "a" * 300, **worker))
    other = Frame.of("e", entry(2, event_type="a" * 300, **worker))
    walk = fleet.walk([long, long, other])
    assert steps(walk) > 3 * 25
    assert sink.writes == 1
    assert [walk.recipients(long), walk.recipients(long)] == [1, 1]
    assert walk.recipients(other) == 0
    assert [patterns.known(other.names or ()) for patterns in hostile] == [None, None, None]


def test_patterns_that_change_while_it_compares(fleet: Fanout) -> None:
    """A client that leaves its audience while that is prepared is not written to, neither now nor by the walk."""
    for patterns in (EVERYTHING, Patterns.of(["e*"])):
        fleet.join(patterns, SlowEncoding(fleet))
    walk = fleet.walk(frames(1, 20))
    going = iter(walk)
    next(going)
    for client, _ in fleet.clients:
        assert client.audience is not None
        assert not walk.reach(client)
        fleet.audiences.leave(client, client.audience)
        walk.pass_over(client)
    assert len(list(going)) >= 0
    assert [sink.writes for _, sink in fleet.clients] == [0, 0]


def test_joining_meanwhile(fleet: Fanout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that joins during a walk gets nothing of it, and everything after it."""
    monkeypatch.setattr(fanout, "LOOK", 1)
    monkeypatch.setattr(pace, "SECONDS", 0.0)
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
    monkeypatch.setattr(fanout, "LOOK", 1)
    monkeypatch.setattr(pace, "SECONDS", 0.0)
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
    """A client that is given its frames out of turn is passed over later, and no client is given them twice."""
    monkeypatch.setattr(fanout, "LOOK", 1)
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    for _ in range(3):
        fleet.join()
    walk = fleet.walk(frames(1, 2, traceparent="00-1-2-01"))
    going = iter(walk)
    while not fleet.clients[0][1].writes:
        next(going)
    for client, _ in fleet.clients:
        assert walk.reach(client)
        assert walk.reach(client)
        assert client.place == walk.end
    assert len(list(going)) <= 1
    assert [(sink.numbers, sink.writes) for _, sink in fleet.clients] == [([1, 2], 1)] * 3
    assert walk.written.messages == 6
    assert [walk.recipients(frame) for frame in walk.frames] == [3, 3]

"""Acks: which are outstanding from which client, and since when."""

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from kernel import EventData, RiskLevel
from kernel.clients.acks import AckLedger
from kernel.clients.audiences import Audiences
from kernel.clients.client import Client
from kernel.clients.globs import GlobSet
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.log.encodings import Encoding
from kernel.log.envelope import Entry
from kernel.log.event_stream import EventStreamEncoding
from kernel.log.frames import Frame
from kernel.position import Position
from tests.fakes import FakeRedis, FakeSink
from tests.kernel.replicas import RARE_CHECKS, WIRE, join, replica
from tests.virtual_time import eventually

# 100 patterns of 253 characters that could match short names, so that only a comparison decides: it takes 15 to 40 ms.
_MEMBERS = [
    "".join(f"{chr(0x4E00 + 111 * at + 3 * n)}-{chr(0x4E01 + 111 * at + 3 * n)}" for n in range(5)) for at in range(12)
]
HOSTILE = ["".join(f"[{members}{number:03}]*" for members in _MEMBERS) + "~" for number in range(100)]
ALARM = EventData(
    id=1,
    event_id=1,
    batch_id="b",
    camera_id="c",
    risk_score=90,
    risk_level=RiskLevel.HIGH,
    summary="s",
    reasoning="r",
)


def event(sequence: int, *, epoch: str = "e", wants: bool = True, type: str = "event") -> Frame:
    """Return an event that requires an ack, unless `wants` says otherwise."""
    entry = Entry(sequence=sequence, id=str(sequence), type=type, data=msgspec.Raw(b"{}"), requires_ack=wants)
    return Frame.of(epoch, entry)


def client(sequence: int, patterns: Patterns = EVERYTHING) -> Client:
    """Return a client that joined after that event."""
    return Client("c", FakeSink(), WIRE, Position("e", sequence), patterns)


@pytest.fixture
def ledger() -> AckLedger:
    """Return a ledger of events 11 to 15, each delivered at its own number; 12 and 14 require acks."""
    ledger = AckLedger()
    assert not ledger
    for number in range(11, 16):
        ledger.enter([event(number, wants=number in (12, 14))], float(number))
    assert len(ledger) == 2
    return ledger


def test_owed(ledger: AckLedger) -> None:
    """Acks are outstanding for the events that a client was sent and has not acknowledged, up to its position."""
    one = client(10)
    assert ledger.owed(one) == 0
    one.place = Position("e", 13)
    assert ledger.owed(one) == 1
    one.place = Position("e", 15)
    assert ledger.owed(one) == 2
    one.acknowledge(12)
    assert ledger.owed(one) == 1
    one.acknowledge(15)
    assert ledger.owed(one) == 0
    assert ledger.owed(client(15)) == 0


def test_out_since(ledger: AckLedger) -> None:
    """The time to acknowledge runs from the delivery of the newest event that the ack settles."""
    one = client(10)
    one.place = Position("e", 13)
    assert ledger.sent_at(one, 11) is None
    assert ledger.sent_at(one, 12) == 12.0
    # it has not got 14 yet
    assert ledger.sent_at(one, 15) == 12.0
    one.place = Position("e", 15)
    assert ledger.sent_at(one, 15) == 14.0
    one.acknowledge(15)
    assert ledger.sent_at(one, 15) is None


def test_only_who_gets_them(ledger: AckLedger) -> None:
    """No ack is outstanding for events that a client's patterns do not match."""
    for globs, owed in ((["alert.*"], 0), (["event"], 2), (["event.c*"], 2), ([], 0)):
        one = client(10, Patterns.of(globs))
        one.place = Position("e", 15)
        assert ledger.owed(one) == owed


def test_only_who_can_send_them(ledger: AckLedger) -> None:
    """No ack is outstanding from a client that cannot send acks."""
    listener = client(0)
    listener.place = Position("e", 15)
    assert ledger.owed(listener) > 0
    listener.encoding = EventStreamEncoding(chunked=False)
    assert ledger.owed(listener) == 0


def test_going_back(ledger: AckLedger) -> None:
    """Acks are outstanding for replayed events too, although they are older than the client's first event."""
    one = client(15)
    one.move_to(Position("e", 11))
    assert ledger.owed(one) == 0
    one.place = Position("e", 15)
    assert ledger.owed(one) == 2
    one.clear_acks()
    assert ledger.owed(one) == 0


def test_new_epoch(ledger: AckLedger) -> None:
    """In a new epoch acks restart at 0, and none of the old epoch is outstanding."""
    one = client(10)
    one.place = Position("e", 15)
    one.acknowledge(13)
    ledger.enter([event(1, epoch="f"), event(2, epoch="f")], 20.0)
    assert ledger.owed(one) == 0
    one.place = Position("f", 2)
    assert ledger.owed(one) == 2
    one.acknowledge(1)
    assert ledger.owed(one) == 1


def test_what_is_not_an_event(ledger: AckLedger) -> None:
    """A marker is not entered, nor an entry of another type that claims to require an ack."""
    ledger.enter([Frame.gap("e", 16, 17), event(18, type="scene_change")], 18.0)
    assert len(ledger) == 2


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that gets an entry for each block of patterns that is compared."""
    blocks: list[object] = []
    steps = GlobSet.steps

    def counted(globs: GlobSet, names: Sequence[str]) -> Iterator[bool]:
        for step in steps(globs, names):
            blocks.append(globs)
            yield step

    monkeypatch.setattr(GlobSet, "steps", counted)
    return blocks


async def test_hostile_patterns_are_not_compared_for_acks(compared: list[object]) -> None:
    """A subscribe, a disconnect and the metrics compare no long patterns; the delivery of an event does, in steps."""
    assert max(map(len, HOSTILE)) <= 256
    async with replica(FakeRedis(), RARE_CHECKS) as broadcaster:
        usual, _ = join(broadcaster)
        await broadcaster.broadcast_event(ALARM)
        await eventually(lambda: broadcaster.unacknowledged == 1)
        hostile = Patterns.of([*HOSTILE[:-1], "e[u-w]ent"])
        client, _ = join(broadcaster, patterns=hostile)
        others = [join(broadcaster, skips=lambda _: True)[0] for _ in range(2)]
        for other in others:
            broadcaster.hub.receive(other, json.dumps({"type": "subscribe", "data": {"events": HOSTILE}}))
            broadcaster.hub.receive(other, '{"type":"ack","data":{"sequence":1}}')
        assert broadcaster.unacknowledged == 1
        broadcaster.disconnect(others[0])
        assert compared == []
        await broadcaster.broadcast_event(ALARM)
        await eventually(lambda: all(each.place.sequence == 2 for each in (usual, client, others[1])))
        assert len(compared) > 20
        assert broadcaster.unacknowledged == 3
        broadcaster.disconnect(others[1])
        broadcaster.disconnect(client)
        assert broadcaster.counters.unacknowledged_at_close == 1


def test_a_whole_audience(ledger: AckLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acks are counted once for each client, live or behind, but the patterns of an audience are compared only once."""
    audiences: Audiences[Client, Encoding] = Audiences()
    clients = []
    for globs in (["event"], ["alert.*"], ["*"]):
        for at in range(9, 16):
            for acked in (0, 12, 13, 14, 15):
                for place in (Position("e", 15), Position("e", 13), Position("d", 15)):
                    one = client(at, Patterns.of(globs))
                    one.place = Position("e", 15)
                    one.acknowledge(acked)
                    if acked == 15:
                        one.move_to(Position("e", 11))  # what it has acknowledged is after its place
                    one.place = place
                    if at > 9:
                        one.audience = audiences.join(one, one.patterns, one.encoding)
                    clients.append(one)
    expected = sum(ledger.owed(one) for one in clients)
    compared: list[Patterns] = []
    matches = Patterns.matches

    def counted(patterns: Patterns, names: Sequence[str]) -> bool:
        compared.append(patterns)
        return matches(patterns, names)

    monkeypatch.setattr(Patterns, "matches", counted)
    assert ledger.outstanding(audiences, clients) == expected > 40
    assert len(compared) == 3 + 30  # 30 of those that are in no audience are in this epoch
    assert AckLedger().outstanding(audiences, clients) == 0


async def test_counted_on_another_thread() -> None:
    """Outstanding acks can be counted on the thread that exports metrics, while clients come and go."""
    async with replica(FakeRedis(), RARE_CHECKS) as broadcaster:
        clients = [join(broadcaster)[0] for _ in range(500)]
        await broadcaster.broadcast_event(ALARM)
        await eventually(lambda: broadcaster.unacknowledged == 500)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(1) as pool:
                counts = pool.submit(lambda: [broadcaster.unacknowledged for _ in range(100)])
                while not counts.done():
                    broadcaster.disconnect(clients.pop())
                    clients.append(join(broadcaster)[0])
            assert all(0 <= count <= 500 for count in counts.result())
        finally:
            sys.setswitchinterval(interval)


def test_bounded() -> None:
    """If events are never acknowledged, between the newest 10,000 and the newest 20,000 are remembered."""
    ledger = AckLedger()
    one = client(0)
    for start in range(0, 30_000, 100):
        ledger.enter([event(start + i + 1) for i in range(100)], 1.0)
    one.place = Position("e", 30_000)
    assert 10_000 <= ledger.owed(one) == len(ledger) <= 20_000


async def test_a_replica_keeps_count() -> None:
    """A replica counts the acks that were requested, received, outstanding now and outstanding at each close."""
    async with replica(FakeRedis(), RARE_CHECKS) as broadcaster:
        counters = broadcaster.counters
        clients = [join(broadcaster)[0] for _ in range(3)]
        other, _ = join(broadcaster, patterns=Patterns.of(["alert.*"]), skips=lambda _: True)
        for _ in range(2):
            await broadcaster.broadcast_event(ALARM)
        await eventually(lambda: broadcaster.sequence == 2)
        assert (counters.acks_wanted, counters.acks, broadcaster.unacknowledged) == (6, 0, 6)
        assert broadcaster.record_ack(clients[0], 2)
        broadcaster.hub.receive(clients[1], '{"type":"ack","data":{"sequence":1}}')
        assert not broadcaster.record_ack(clients[1], 9)
        assert not broadcaster.record_ack(other, 9)
        assert (counters.acks, broadcaster.unacknowledged) == (4, 3)
        assert sum(counters.acknowledge_duration.counts) == 2
        broadcaster.disconnect(clients[1])
        broadcaster.disconnect(clients[1])
        assert (counters.unacknowledged_at_close, broadcaster.unacknowledged) == (1, 2)
        # for a client that subscribes to events only now, no ack of an earlier one is outstanding
        broadcaster.hub.receive(other, '{"type":"subscribe","data":{"events":["event"]}}')
        assert broadcaster.unacknowledged == 2
        await broadcaster.broadcast_event(ALARM)
        await eventually(lambda: broadcaster.sequence == 3)
        assert broadcaster.unacknowledged == 5

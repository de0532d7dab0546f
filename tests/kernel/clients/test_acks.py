"""Acks: which are outstanding from which client, and since when."""

import msgspec
import pytest

from kernel import EventData, RiskLevel
from kernel.clients.acks import AckLedger
from kernel.clients.client import Client
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.log.envelope import Entry
from kernel.log.frames import Frame
from kernel.position import Position
from tests.fakes import FakeRedis, FakeSink
from tests.kernel.replicas import RARE_CHECKS, WIRE, join, replica
from tests.virtual_time import eventually


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
    data = EventData(
        id=1,
        event_id=1,
        batch_id="b",
        camera_id="c",
        risk_score=90,
        risk_level=RiskLevel.HIGH,
        summary="s",
        reasoning="r",
    )
    async with replica(FakeRedis(), RARE_CHECKS) as broadcaster:
        counters = broadcaster.counters
        clients = [join(broadcaster)[0] for _ in range(3)]
        other, _ = join(broadcaster, patterns=Patterns.of(["alert.*"]), skips=lambda _: True)
        for _ in range(2):
            await broadcaster.broadcast_event(data)
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
        await broadcaster.broadcast_event(data)
        await eventually(lambda: broadcaster.sequence == 3)
        assert broadcaster.unacknowledged == 5

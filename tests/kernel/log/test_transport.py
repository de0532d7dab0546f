"""Tests that every transport must pass: the fake, and the one on Redis with real servers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

import pytest
import redis.asyncio as redis

from kernel.errors import NotSent, WriteRefused
from kernel.log.transport import Batch, Outgoing, Transport
from kernel.position import NOWHERE, Fence, Position
from kernel.redis.transport import RedisTransport
from kernel.resilience.circuit import CircuitState
from tests.conftest import emptied
from tests.fakes import FakeRedis, FakeTransport
from tests.transport_helpers import FRESH, NOTHING, ends, event, fails, hear, heard, kept, listening, outgoing, publish

pytestmark = pytest.mark.real_time

POSITION, HISTORY = "{security_events}:position", "{security_events}:history"


class Link(Protocol):
    """A Redis that several replicas share, and the faults that a test may inject."""

    def replica(self, history_size: int = 10_000) -> Transport:
        """Return another replica's transport."""
        ...

    async def flush(self) -> None:
        """Delete everything."""

    async def lose_history(self) -> None:
        """Delete the events, but not the position."""

    async def trim(self, size: int) -> None:
        """Keep only the newest `size` events."""

    async def rewind(self, sequence: int) -> None:
        """Go back to `sequence`, like a copy that lags and takes over."""

    async def shout(self, payload: bytes) -> None:
        """Publish any payload on the channel."""

    async def read_only(self, on: bool) -> None:
        """Refuse writes, or accept them again."""

    async def hang_up(self) -> None:
        """Close every subscription."""

    async def close(self) -> None:
        """Delete everything and close all connections."""


class _FakeLink:
    """The fake."""

    def __init__(self) -> None:
        self.redis = FakeRedis()

    def replica(self, history_size: int = 10_000) -> FakeTransport:
        self.redis.history_size = history_size
        return FakeTransport(self.redis)

    async def flush(self) -> None:
        self.redis.flush()

    async def lose_history(self) -> None:
        self.redis.lose_history()

    async def trim(self, size: int) -> None:
        self.redis.trim(size)

    async def rewind(self, sequence: int) -> None:
        self.redis.rewind(sequence)

    async def shout(self, payload: bytes) -> None:
        self.redis.announce(payload)

    async def read_only(self, on: bool) -> None:
        self.redis.read_only = on

    async def hang_up(self) -> None:
        self.redis.hang_up()

    async def close(self) -> None:
        pass


class _RealLink:
    """A server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = redis.Redis.from_url(url)
        self.replicas: list[RedisTransport] = []

    def replica(self, history_size: int = 10_000) -> RedisTransport:
        self.replicas.append(RedisTransport(self.url, history_size=history_size))
        return self.replicas[-1]

    async def flush(self) -> None:
        await self.client.flushall()

    async def lose_history(self) -> None:
        await self.client.delete(HISTORY)

    async def trim(self, size: int) -> None:
        await self.client.xtrim(HISTORY, maxlen=size, approximate=False)

    async def rewind(self, sequence: int) -> None:
        kept = await self.client.xrange(HISTORY, max=f"{sequence}-0")
        await self.client.delete(HISTORY, *await self.client.keys("*:idempotency:*"))
        for id, fields in kept:
            await self.client.xadd(HISTORY, fields, id)
        await self.client.hset(POSITION, "sequence", sequence)

    async def shout(self, payload: bytes) -> None:
        await self.client.publish("security_events", payload)

    async def read_only(self, on: bool) -> None:
        await self.client.execute_command("REPLICAOF", *(("127.0.0.1", "1") if on else ("NO", "ONE")))

    async def hang_up(self) -> None:
        await self.client.client_kill_filter(_type="pubsub")

    async def close(self) -> None:
        await self.read_only(False)
        for replica in self.replicas:
            await replica.close()
        await self.client.aclose()


@pytest.fixture(params=["fake", "valkey", "redis_server"])
async def link(request: pytest.FixtureRequest) -> AsyncIterator[Link]:
    """The fake or a real server, empty."""
    link = _FakeLink() if request.param == "fake" else _RealLink(emptied(request.getfixturevalue(request.param)))
    yield link
    await link.close()


async def test_position_check_begins_an_epoch(link: Link) -> None:
    """The first position check starts the numbering; the first event is number 1."""
    replica = link.replica()
    epoch, sequence = await replica.position(FRESH)
    assert epoch
    assert sequence == 0
    assert await replica.position(FRESH) == (epoch, 0)
    assert await replica.publish(outgoing("a"), FRESH) == (epoch, 1, 1, 0, False)
    assert await link.replica().position(FRESH) == (epoch, 1)


async def test_publish_begins_an_epoch(link: Link) -> None:
    """Without a position check the first publish starts the numbering."""
    fence = await publish(link.replica(), "a")
    assert fence.position == (fence.position.epoch, 1)
    assert fence.position.epoch


async def test_replicas_share_the_numbers(link: Link) -> None:
    """Numbers are consecutive over all replicas, and those of a batch follow each other."""
    one, other = link.replica(), link.replica()
    made = [
        await replica.publish(outgoing(*ids), FRESH) for replica, *ids in ((one, "a"), (other, "b", "c"), (one, "d"))
    ]
    assert [(first, size) for _, first, size, _, _ in made] == [(1, 1), (2, 2), (4, 1)]
    assert len({epoch for epoch, *_ in made}) == 1
    assert await kept(one) == await kept(other) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]


async def test_announcement(link: Link) -> None:
    """A publish reaches every subscriber in one payload, and returns their number."""
    replica = link.replica()
    async with listening(replica) as one, listening(link.replica()) as other:
        made = await replica.publish(outgoing("a", "b", "c"), FRESH)
        assert made.subscribers == 2
        for ear in (one, other):
            assert await heard(ear) == (made.epoch, [(1, "a"), (2, "b"), (3, "c")])


async def test_retry_is_one_publish(link: Link) -> None:
    """A publish that is retried under its id is never published twice."""
    replica = link.replica()
    first = await replica.publish(outgoing("a", "b"), FRESH)
    await publish(replica, "c")
    assert await link.replica().publish(outgoing("a", "b"), FRESH) == first
    assert await kept(replica) == [(1, "a"), (2, "b"), (3, "c")]


async def test_idempotency_key(link: Link) -> None:
    """The same idempotency key gets the first receipt at every replica, whatever the body."""
    one, other = link.replica(), link.replica()
    first = await one.publish(outgoing("a", "b", key="/batch order 7"), FRESH)
    assert first[1:] == (1, 2, 0, False)
    again = await other.publish(outgoing("c", key="/batch order 7"), FRESH)
    assert again == first._replace(replayed=True)
    assert await one.publish(outgoing("a", "b", key="/batch order 7"), FRESH) == first
    assert (await one.publish(outgoing("d", key="/batch order 8"), FRESH)).first == 3
    assert await kept(one) == [(1, "a"), (2, "b"), (3, "d")]


async def test_data_travels_unchanged(link: Link) -> None:
    """The data of an event arrives byte for byte as published."""
    data = '{"a":[],"b":1e2,"c":9223372036854775809,"d":"grün ☃ 😀","e":"\\u00fc\\n\\/\\u0000","f":{"g":[{}]},"h":1.10}'
    replica = link.replica()
    async with listening(replica) as ear:
        both = [event("a", data.encode()), event("b", b'"behind it"')]
        await replica.publish(Outgoing("p", None, both), FRESH)
        (announcement,) = (await hear(ear)).announcements
    for events in (announcement.events, (await replica.read(1, 2)).entries):
        assert [(entry.id, bytes(entry.data)) for entry in events] == [("a", data.encode()), ("b", b'"behind it"')]


async def numbered_anew(replica: Transport, fence: Fence, ear: AsyncGenerator[Batch, None]) -> None:
    """Check that a position check under this fence starts a new epoch: no history, announced, numbers from 1."""
    epoch, sequence = await replica.position(fence)
    assert epoch != fence.position.epoch
    assert sequence == 0
    assert await heard(ear) == (epoch, [])
    assert await kept(replica) == []
    assert await replica.publish(outgoing("next"), fence) == (epoch, 1, 1, 1, False)
    assert await kept(replica) == [(1, "next")]


async def test_redis_is_behind(link: Link) -> None:
    """If Redis comes back behind what a replica has delivered, a new epoch starts."""
    replica = link.replica()
    fence = await publish(replica, "a", "b", "c")
    await link.rewind(2)
    async with listening(replica) as ear:
        await numbered_anew(replica, fence, ear)


async def test_redis_has_another_past(link: Link) -> None:
    """If Redis has another event under a delivered number, a new epoch starts."""
    replica, newcomer = link.replica(), link.replica()
    fence = await publish(replica, "a", "b", "c")
    await link.rewind(2)
    assert (await publish(newcomer, "x", "y")).position == (fence.position.epoch, 4)
    async with listening(replica) as ear:
        await numbered_anew(replica, fence, ear)


@pytest.mark.parametrize("newcomers", [0, 2])
async def test_publish_finds_the_fork(link: Link, newcomers: int) -> None:
    """A publish detects a fork as a position check does, and is the first event of the new epoch."""
    replica = link.replica()
    fence = await publish(replica, "a", "b", "c")
    await link.rewind(2)
    for number in range(newcomers):
        await publish(link.replica(), f"x{number}")
    async with listening(replica) as ear:
        made = await replica.publish(outgoing("d", "e"), fence)
        assert made.epoch != fence.position.epoch
        assert made[1:] == (1, 2, 1, False)
        assert await heard(ear) == (made.epoch, [(1, "d"), (2, "e")])
    assert await kept(replica) == [(1, "d"), (2, "e")]


async def test_caller_of_another_epoch_never_forks(link: Link) -> None:
    """A caller in another epoch starts none, however high its number is."""
    replica = link.replica()
    here = (await publish(replica, "a")).position
    strange = Fence(Position("0123456789abcdef", 500), "z")
    assert await replica.position(strange) == here
    assert (await replica.publish(outgoing("b"), strange))[:2] == (here.epoch, 2)


async def test_overtaken_position_is_no_fork(link: Link) -> None:
    """A position that newer events have overtaken is not a fork."""
    replica = link.replica()
    fence = await publish(replica, "a")
    await publish(link.replica(), "b", "c")
    assert await replica.position(fence) == (fence.position.epoch, 3)
    assert (await publish(replica, "d", fence=fence))[:2] == ((fence.position.epoch, 4), "d")


async def test_unknown_past_is_no_fork(link: Link) -> None:
    """An event that is no longer kept, or whose id the replica does not know, is not proof of a fork."""
    replica = link.replica()
    fence = await publish(replica, "a", "b")
    await publish(replica, "c", "d")
    assert (await replica.position(Fence(fence.position, ""))).sequence == 4
    await link.trim(1)
    assert await replica.position(fence) == (fence.position.epoch, 4)
    await link.lose_history()
    assert (await publish(replica, "e", fence=fence))[:2] == ((fence.position.epoch, 5), "e")


async def test_lost_numbering(link: Link) -> None:
    """If Redis has lost the position, one new epoch starts for all replicas."""
    one, other = link.replica(), link.replica()
    fence = await publish(one, "a", "b")
    await link.flush()
    async with listening(other) as ear:
        epoch, sequence = await one.position(fence)
        assert epoch != fence.position.epoch
        assert sequence == 0
        assert await heard(ear) == (epoch, [])
    assert await other.position(fence) == (epoch, 0)


async def test_read(link: Link) -> None:
    """Any range of the history can be read, with the position, the oldest number and the next one to read."""
    replica = link.replica()
    page = await replica.read(1, 10)
    assert page == (NOWHERE, 1, [], 1, "")
    here = (await publish(replica, "a", "b", "c", "d")).position
    page = await replica.read(2, 3)
    assert [(entry.sequence, entry.id, entry.type, bytes(entry.data)) for entry in page.entries] == [
        (2, "b", "event", b"{}"),
        (3, "c", "event", b"{}"),
    ]
    assert (*page[:2], page.beyond) == (here, 1, 4)
    assert await replica.read(5, 9) == (here, 1, [], 5, "")
    assert await replica.read(3, 2, witness=4) == (here, 1, [], 3, "d")
    await link.trim(2)
    page = await replica.read(1, 4)
    assert (*page[:2], page.beyond) == (here, 3, 5)
    assert await replica.read(1, 1, witness=2) == (here, 3, [], 3, "")
    assert [entry.id for entry in page.entries] == ["c", "d"]
    await link.lose_history()
    assert await replica.read(1, 4, witness=4) == (here, 5, [], 5, "")


async def test_read_of_large_events(link: Link) -> None:
    """An answer holds about 1 MiB of the history, or one event; the number after it says where to go on."""
    replica = link.replica()
    sizes = [300_000, 400_000, 500_000, 1_500_000, 2_000_000, 10, 10]
    for number, size in enumerate(sizes, 1):
        await replica.publish(Outgoing(f"p{number}", None, [event(f"e{number}", b'"%s"' % (b"x" * size))]), FRESH)
    first, parts = 1, []
    while first <= 7:
        page = await replica.read(first, 7)
        parts.append([entry.sequence for entry in page.entries])
        assert page.oldest == 1
        assert page.position.sequence == 7
        first = page.beyond
    assert parts == [[1, 2], [3], [4], [5], [6, 7]]
    assert (await replica.read(1, 1)).beyond == 2


async def test_history_is_trimmed(link: Link) -> None:
    """The history keeps at least the newest events, and is trimmed."""
    replica = link.replica(history_size=2)
    await publish(replica, *(f"e{number}" for number in range(1, 301)))
    page = await replica.read(1, 300)
    assert 1 < page.oldest <= 299
    assert [entry.sequence for entry in page.entries] == list(range(page.oldest, 301))


async def test_all_that_has_arrived_is_one_batch(link: Link) -> None:
    """All that has arrived comes as one batch, in order; if nothing arrives, an empty batch comes."""
    replica = link.replica()
    async with listening(replica) as ear:
        await asyncio.gather(*(replica.publish(outgoing(f"e{number}"), FRESH) for number in range(1, 6)))
        batch = await hear(ear)
        assert [entry.id for each in batch.announcements for entry in each.events] == ["e1", "e2", "e3", "e4", "e5"]
        assert await anext(ear) == NOTHING


FOREIGN = [
    b"",
    b"hello",
    b"\xff\xfe",
    b"{}",
    b"[]",
    b'{"epoch":"e","events":{}}',
    b'{"epoch":"","events":[]}',
    b'{"epoch":"e","events":[{"sequence":0,"id":"a","type":"event","data":{}}]}',
    b'{"epoch":"e","events":[{"sequence":1,"id":"a","type":"event"}]}',
    b'{"epoch":"e","events":[{"sequence":1,"id":"a","type":"event","data":{"x":"\xff"}}]}',
    b'{"epoch":"e","events":[{"sequence":1,"id":"a","type":"event","data":%s}]}' % (b"[" * 100_000 + b"]" * 100_000),
    b'{"epoch":"e","events":[{"sequence":%s,"id":"a","type":"event","data":{}}]}' % (b"9" * 5000),
]


async def test_foreign_documents(link: Link) -> None:
    """Invalid messages on the channel are counted and skipped, and the subscription goes on."""
    replica = link.replica()
    async with listening(replica) as ear:
        for payload in FOREIGN:
            await link.shout(payload)
        await publish(replica, "a")
        foreign = 0
        while not (batch := await hear(ear)).announcements:
            foreign += batch.foreign
    assert foreign + batch.foreign == len(FOREIGN)
    assert [entry.id for each in batch.announcements for entry in each.events] == ["a"]


async def test_read_only(link: Link) -> None:
    """Refused writes raise another error than an unreachable Redis, and change nothing."""
    replica = link.replica()
    here = (await publish(replica, "a")).position
    await link.read_only(True)
    with pytest.raises(WriteRefused):
        await replica.publish(outgoing("b"), FRESH)
    with pytest.raises(WriteRefused):
        await replica.position(FRESH, probe=True)
    assert await replica.position(FRESH) == here
    assert await kept(replica) == [(1, "a")]
    await link.read_only(False)
    assert await replica.position(FRESH, probe=True) == here
    assert (await publish(replica, "b")).position == (here.epoch, 2)


async def test_lost_subscription(link: Link) -> None:
    """A subscription that is lost ends, and the replica can subscribe again."""
    replica = link.replica()
    async with listening(replica) as ear:
        await link.hang_up()
        await ends(ear)
    async with listening(replica) as ear:
        fence = await publish(replica, "a")
        assert await heard(ear) == (fence.position.epoch, [(1, "a")])


async def test_close(link: Link) -> None:
    """`close` ends a subscription and is safe to repeat; the transport can be used again afterwards."""
    replica = link.replica()
    await replica.close()
    fence = await publish(replica, "a")
    async with listening(replica) as ear:
        await replica.close()
        await replica.close()
        await ends(ear)
    assert await replica.position(fence) == fence.position
    async with listening(replica) as ear:
        await publish(replica, "b")
        assert await heard(ear) == (fence.position.epoch, [(2, "b")])


async def test_cancelled_publisher(link: Link) -> None:
    """A cancelled publish does not disturb those that are published at the same time."""
    replica = link.replica()
    publishers = [asyncio.create_task(publish(replica, f"e{number}")) for number in range(4)]
    await asyncio.sleep(0)
    for impatient in publishers[0], publishers[2]:
        impatient.cancel()
    fences: list[Any] = await asyncio.gather(*publishers, return_exceptions=True)
    assert [type(fence) for fence in fences] == [asyncio.CancelledError, Fence, asyncio.CancelledError, Fence]
    events = await kept(replica)
    assert all((fence.position.sequence, fence.id) in events for fence in (fences[1], fences[3]))
    await publish(replica, "after")


# --- continuity


async def fork(link: Link, replica: Transport, fence: Fence, sequence: int, *ids: str) -> None:
    """Let Redis go back to a number, and another publisher give the numbers after it to other events."""
    await link.rewind(sequence)
    other = link.replica()
    for id in ids:
        await publish(other, id)


async def renumbered(replica: Transport, fence: Fence) -> None:
    """Check that a position check with this fence begins a new epoch."""
    epoch, sequence = await replica.position(fence)
    assert (epoch != fence.position.epoch, sequence) == (True, 0)


async def test_announcements_are_chained(link: Link) -> None:
    """An announcement names the id of the event before its first one, "" before the first event of an epoch."""
    replica = link.replica()
    async with listening(replica) as ear:
        for ids, after in ((("a", "b"), ""), (("c",), "b"), (("d", "e"), "c")):
            await publish(replica, *ids)
            (announcement,) = (await hear(ear)).announcements
            assert announcement.after == after
        await link.rewind(4)
        await publish(replica, "x")
        (announcement,) = (await hear(ear)).announcements
        assert announcement.after == "d"
        await link.rewind(5)
        await link.lose_history()
        for after in (None, "z"):
            await publish(replica, "z" if after is None else "y")
            (announcement,) = (await hear(ear)).announcements
            assert announcement.after == after


async def test_fork_behind_what_was_verified(link: Link) -> None:
    """A fork is found by the last verified event, although the one delivered last belongs to the other past."""
    replica = link.replica()
    fence = await publish(replica, "a", "b", "c")
    await fork(link, replica, fence, 2, "x", "y", "z")
    heard = Fence(Position(fence.position.epoch, 5), "z", verified=(3, "c"))
    await renumbered(replica, heard)


async def test_verified_events_of_this_past(link: Link) -> None:
    """If both the delivered and the verified event are the caller's, or no longer kept, there is no fork."""
    replica = link.replica()
    fence = await publish(replica, "a", "b", "c", "d")
    for verified in ((2, "b"), (4, "d"), (2, ""), (0, "")):
        assert (await replica.position(fence._replace(verified=verified))).sequence == 4
    await link.trim(1)
    assert (await replica.position(fence._replace(verified=(2, "b")))).sequence == 4


@pytest.mark.parametrize("call", ["position", "publish"])
async def test_doubt_that_nothing_refutes(link: Link, call: str) -> None:
    """If the caller doubts, an event that the history no longer has means a new epoch; one that it has means none."""
    replica = link.replica()
    fence = (await publish(replica, "a", "b", "c"))._replace(doubts=1)
    await publish(link.replica(), "d")
    assert await replica.position(fence) == (fence.position.epoch, 4)
    await link.trim(1)
    if call == "position":
        await renumbered(replica, fence)
    else:
        made = await replica.publish(outgoing("e"), fence)
        assert (made.epoch != fence.position.epoch, made.first) == (True, 1)


@pytest.mark.parametrize("call", ["position", "publish"])
async def test_an_epoch_that_comes_back(link: Link, call: str) -> None:
    """If Redis is in an epoch that the caller has left, it was restored, and a new epoch begins."""
    replica = link.replica()
    left = (await publish(replica, "a", "b")).position.epoch
    here = Fence(Position("0123456789abcdef", 7), "z", (7, "z"), left=("fedcba9876543210", left))
    if call == "position":
        epoch, _ = await replica.position(here)
    else:
        epoch = (await replica.publish(outgoing("c"), here)).epoch
    assert epoch != left
    assert (await replica.position(here)).epoch == epoch


async def test_part_of_a_name_is_another_epoch(link: Link) -> None:
    """Epochs are compared as a whole."""
    replica = link.replica()
    epoch = (await publish(replica, "a")).position.epoch
    here = Fence(Position("0123456789abcdef", 7), "z", left=(epoch + "0", epoch[1:]))
    assert await replica.position(here) == (epoch, 1)


@pytest.mark.parametrize("key", [None, "key"])
async def test_receipt_of_a_lost_epoch(link: Link, key: str | None) -> None:
    """A record whose epoch Redis has lost is no receipt: the event is published again."""
    replica = link.replica()
    call = outgoing("a", key=key)
    first = await replica.publish(call, FRESH)
    fence = Fence(Position(first.epoch, 1), "a", (1, "a"))
    # this very call begins the epoch, and its record is then a receipt
    forked = fence._replace(id="another")
    again = await replica.publish(call, forked)
    assert (again.epoch != first.epoch, again.first, again.replayed) == (True, 1, False)
    assert await replica.publish(call, forked) == again
    assert await kept(replica) == [(1, "a")]
    # the epoch began in another call
    await renumbered(replica, Fence(Position(again.epoch, 1), "b", (1, "b")))
    last = await replica.publish(call, FRESH)
    assert len({first.epoch, again.epoch, last.epoch}) == 3
    assert await kept(replica) == [(1, "a")]


async def test_records_are_not_asked_before_the_fence(link: Link) -> None:
    """A call that only records could answer finds a fork nevertheless, and so does a group of which some are new."""
    replica = link.replica()
    await publish(replica, "a", "b")
    first = await replica.publish(outgoing("c"), FRESH)
    fence = Fence(Position(first.epoch, 2), "another", (2, "another"))
    made = await asyncio.gather(*(replica.publish(outgoing(id), fence) for id in "cd"))
    assert [publication.first for publication in made] == [1, 2]
    assert await kept(replica) == [(1, "c"), (2, "d")]


async def test_witness(link: Link) -> None:
    """A page of the history names the id of the event that the reader asked about, "" if it is not kept."""
    replica = link.replica()
    await publish(replica, "a", "b", "c")
    assert [(await replica.read(1, 1, number)).witness for number in (0, 1, 3, 4)] == ["", "a", "c", ""]
    await link.trim(1)
    assert (await replica.read(1, 3, 2)).witness == ""


async def test_circuit_and_end(link: Link) -> None:
    """A publish that is not sent yet fails when the circuit opens and when publishing ends; later ones are sent."""
    replica = link.replica()
    await publish(replica, "a")
    for end in (lambda: replica.circuit_changed(CircuitState.OPEN), replica.end_publishes):
        publishing = asyncio.create_task(replica.publish(outgoing("b"), FRESH))
        await asyncio.sleep(0)
        end()
        with pytest.raises(NotSent):
            await publishing
    replica.circuit_changed(CircuitState.CLOSED)
    assert (await publish(replica, "c")).position.sequence == 2


async def test_faults_of_the_fake() -> None:
    """The fake: a failing call does nothing, one whose answer is lost takes effect, and a dead one refuses all."""
    shared = FakeRedis()
    replica = FakeTransport(shared)
    shared.fail(2)
    await fails(replica.position(FRESH))
    await fails(replica.publish(outgoing("a"), FRESH))
    assert shared.place == NOWHERE
    shared.fail(after=True)
    await fails(replica.publish(outgoing("a"), FRESH))
    assert (await replica.publish(outgoing("a"), FRESH))[1:] == (1, 1, 0, False)
    async with listening(replica) as ear:
        shared.down = True
        await ends(ear)
        await fails(replica.read(1, 1))
        await fails(anext(replica.listen(1)))
        shared.down = False
        assert await kept(replica) == [(1, "a")]
    shared.fail(error=WriteRefused("OOM"))
    with pytest.raises(WriteRefused):
        await publish(replica, "b")
    assert shared.calls == [
        *("position", "publish", "publish", "publish", "listen", "read", "listen", "read", "publish")
    ]


async def test_deafness_of_the_fake() -> None:
    """The fake: announcements can be held back and released, or lost."""
    shared = FakeRedis()
    replica = FakeTransport(shared)
    async with listening(replica) as ear:
        shared.hold()
        fence = await publish(replica, "a")
        assert await anext(ear) == NOTHING
        shared.release()
        assert await heard(ear) == (fence.position.epoch, [(1, "a")])
        shared.deaf = True
        await publish(replica, "b")
        shared.deaf = False
        await publish(replica, "c")
        assert await heard(ear) == (fence.position.epoch, [(3, "c")])


# --- what is kept


async def test_how_much_is_kept(link: Link) -> None:
    """A position check returns the number of events in the history."""
    replica = link.replica()
    assert replica.kept == 0
    fence = await publish(replica, "a", "b", "c")
    await replica.position(fence)
    assert replica.kept == 3
    await link.trim(1)
    await replica.position(fence)
    assert replica.kept == 1
    await link.lose_history()
    await replica.position(fence)
    assert replica.kept == 0

"""Faults of the transport on Redis: damaged keys, refusals, connections, scripts, subscriptions."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import Context, ContextVar
from typing import Any

import pytest
import redis.asyncio as redis
import uvloop

from handlers.server.embedded import EmbeddedValkey
from kernel.errors import TransportError, TransportUnavailable, WriteRefused
from kernel.log.transport import Outgoing
from kernel.observer import Observer
from kernel.position import NOWHERE, Position
from kernel.redis import transport as transport_module
from kernel.redis.transport import RedisTransport
from tests.proxy import Proxy, ProxyMode
from tests.scripted_redis import ScriptedRedis
from tests.transport_helpers import FRESH, ends, event, fails, hear, heard, kept, listening, outgoing, publish
from tests.waiting import eventually

pytestmark = pytest.mark.real_time

POSITION, HISTORY = "{security_events}:position", "{security_events}:history"
RECORD = "{security_events}:idempotency:publish-of-a"


@pytest.fixture
async def client(each_redis_url: str) -> AsyncIterator[Any]:
    """A client for everything that others may do to the server."""
    async with redis.Redis.from_url(each_redis_url) as client:
        yield client


@pytest.fixture
async def replica(each_redis_url: str) -> AsyncIterator[RedisTransport]:
    """A replica's transport on each kind of server."""
    transport = RedisTransport(each_redis_url)
    yield transport
    await transport.close()


@contextlib.asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[RedisTransport]:
    """A replica's transport."""
    transport = RedisTransport(url, **options)
    try:
        yield transport
    finally:
        await transport.close()


async def everything(client: Any) -> dict[bytes, bytes]:
    """Return everything that Redis stores."""
    return {key: await client.dump(key) for key in await client.keys()}


# --- what is kept and sent


async def test_names(replica: RedisTransport, client: Any) -> None:
    """Keys carry the channel as a hash tag, ids in the history are numbers, payloads are JSON."""
    async with client.pubsub() as pubsub, connected(client_url(client), channel="doors") as other:
        await pubsub.subscribe("doors")
        await other.publish(Outgoing("request", None, [event("a"), event("b", b'{"x":[]}')]), FRESH)
        payload = await eventual_payload(pubsub)
    position = await client.hgetall("{doors}:position")
    assert position == {b"epoch": payload["epoch"].encode(), b"sequence": b"2"}
    assert payload["after"] == ""
    assert payload["events"] == [
        {"sequence": 1, "id": "a", "type": "event", "data": {}},
        {"sequence": 2, "id": "b", "type": "event", "data": {"x": []}},
    ]
    assert [id for id, _ in await client.xrange("{doors}:history")] == [b"1-0", b"2-0"]
    assert set(await client.keys()) == {b"{doors}:position", b"{doors}:history", b"{doors}:idempotency:request"}
    assert await replica.read(1, 9) == (NOWHERE, 1, [], 1, "")


def client_url(client: Any) -> str:
    """Return the address to which a client is connected."""
    return f"unix://{client.connection_pool.connection_kwargs['path']}"


async def eventual_payload(pubsub: Any) -> Any:
    """Return the next payload on the channel."""
    async with asyncio.timeout(5):
        while (message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)) is None:
            pass
    return json.loads(message["data"])


@pytest.mark.parametrize(
    ("retry_lifetime", "least", "most"),
    [(60.0, 59_000, 60_000), (500.0, 499_000, 500_000), (0.0, -2, 1), (float("inf"), 10**11, 10**12)],
)
async def test_lifetime_of_records(
    each_redis_url: str, client: Any, retry_lifetime: float, least: int, most: int
) -> None:
    """A request's id is remembered as long as its retries can take, a key for 300 s and never for a shorter time."""
    async with connected(each_redis_url, retry_lifetime=retry_lifetime) as replica:
        await publish(replica, "a")
        assert least <= await client.pttl(RECORD) <= most
        await replica.publish(outgoing("b", key="a key\nwith \x00 all sorts"), FRESH)
        (key,) = (
            key for key in await client.keys() if key not in (POSITION.encode(), HISTORY.encode(), RECORD.encode())
        )
        assert max(299_000, least) < await client.pttl(key) <= max(300_000, most)
        assert key.replace(b"{security_events}:idempotency:", b"").isalnum()
        assert await kept(replica) == [(1, "a"), (2, "b")]


async def test_trial_writes(replica: RedisTransport, client: Any) -> None:
    """The trial call writes a key that expires soon, and numbers nothing."""
    here = await replica.position(FRESH, probe=True)
    (key,) = await client.keys("*:idempotency:*")
    assert 0 < await client.pttl(key) <= 1000
    assert await replica.position(FRESH) == here


# --- keys that others wrote

UNUSABLE_POSITIONS: dict[str, list[tuple[object, ...]]] = {
    "a string": [("SET", POSITION, "7")],
    "a list": [("RPUSH", POSITION, "epoch", "sequence")],
    "no sequence": [("HSET", POSITION, "epoch", "e")],
    "no epoch": [("HSET", POSITION, "sequence", "7")],
    "a sequence that is no number": [("HSET", POSITION, "epoch", "e", "sequence", "abc")],
    "an empty sequence": [("HSET", POSITION, "epoch", "e", "sequence", "")],
    "a negative sequence": [("HSET", POSITION, "epoch", "e", "sequence", "-1")],
    "a float": [("HSET", POSITION, "epoch", "e", "sequence", "1e3")],
    "a sequence of 20 digits": [("HSET", POSITION, "epoch", "e", "sequence", "1" * 20)],
    "a sequence of 5000 digits": [("HSET", POSITION, "epoch", "e", "sequence", "1" * 5000)],
    "an epoch with quotes": [("HSET", POSITION, "epoch", 'e","events":[]}', "sequence", "7")],
    "an empty epoch": [("HSET", POSITION, "epoch", "", "sequence", "7")],
    "an epoch of 100 characters": [("HSET", POSITION, "epoch", "e" * 100, "sequence", "7")],
    "an epoch that is not UTF-8": [("HSET", POSITION, "epoch", b"\xff", "sequence", "7")],
}

UNUSABLE_HISTORIES: dict[str, list[tuple[object, ...]]] = {
    "a string": [("SET", HISTORY, "x")],
    "a list": [("RPUSH", HISTORY, "x")],
    "an entry far above": [("XADD", HISTORY, "999999999999999-0", "id", "x", "event", "x")],
    "an entry at the very top": [("XADD", HISTORY, f"{2**64 - 1}-{2**64 - 1}", "id", "x", "event", "x")],
    "an entry just above": [("XADD", HISTORY, "3-1", "id", "x", "event", "x")],
}

UNUSABLE_RECORDS: dict[str, list[tuple[object, ...]]] = {
    "a list": [("RPUSH", RECORD, "x")],
    "empty": [("SET", RECORD, "")],
    "junk": [("SET", RECORD, "\x00\x01 junk")],
    "an epoch that is not UTF-8": [("SET", RECORD, b"publish-of-a \xff 1 1 0")],
    "a number of 20 digits": [("SET", RECORD, f"publish-of-a e {'9' * 20} 1 0")],
    "a count of 15 digits": [("SET", RECORD, f"publish-of-a e 1 {'9' * 15} 0")],
    "20 digits of subscribers": [("SET", RECORD, f"publish-of-a e 1 1 {'9' * 20}")],
}


def cases(table: dict[str, list[tuple[object, ...]]]) -> pytest.MarkDecorator:
    """Run a test for each way to damage a key."""
    return pytest.mark.parametrize("spoil", table.values(), ids=table.keys())


@cases(UNUSABLE_POSITIONS)
async def test_unusable_position(replica: RedisTransport, client: Any, spoil: list[tuple[object, ...]]) -> None:
    """An unusable position means a new epoch, found by the position check and announced."""
    fence = await publish(replica, "a", "b", "c")
    await client.delete(POSITION)
    for command in spoil:
        await client.execute_command(*command)
    assert (await replica.read(1, 9)).position.epoch != fence.position.epoch
    async with listening(replica) as ear:
        epoch, sequence = await replica.position(fence)
        assert sequence == 0
        assert epoch not in ("", fence.position.epoch)
        assert await heard(ear) == (epoch, [])
    assert await kept(replica) == []
    assert (await publish(replica, "d", fence=fence)).position == (epoch, 1)


@cases(UNUSABLE_POSITIONS)
async def test_publish_on_unusable_position(
    replica: RedisTransport, client: Any, spoil: list[tuple[object, ...]]
) -> None:
    """A publish that finds an unusable position starts the new epoch with its own events."""
    await publish(replica, "a", "b", "c")
    await client.delete(POSITION)
    for command in spoil:
        await client.execute_command(*command)
    async with listening(replica) as ear:
        made = await replica.publish(outgoing("d", "e"), FRESH)
        assert made[1:] == (1, 2, 1, False)
        assert await heard(ear) == (made.epoch, [(1, "d"), (2, "e")])
    assert await kept(replica) == [(1, "d"), (2, "e")]


async def test_large_numbers(replica: RedisTransport, client: Any) -> None:
    """Numbers stay exact up to their limit, and then a new epoch starts."""
    epoch, _ = await replica.position(FRESH)
    await client.hset(POSITION, "sequence", 999_999_999_999_997)
    fence = await publish(replica, "a")
    assert fence[:2] == ((epoch, 999_999_999_999_998), "a")
    assert (await replica.publish(outgoing("a"), FRESH)).first == 999_999_999_999_998
    fence = await publish(replica, "b", fence=fence)
    assert await kept(replica, 1, 10**15) == [(999_999_999_999_998, "a"), (999_999_999_999_999, "b")]
    fence = await publish(replica, "c", fence=fence)
    assert fence[:2] == ((epoch, 10**15), "c")
    assert (await publish(replica, "d", fence=fence)).position.sequence == 1


@cases(UNUSABLE_HISTORIES)
async def test_unusable_history(replica: RedisTransport, client: Any, spoil: list[tuple[object, ...]]) -> None:
    """If the history cannot take an event, the publish that finds it starts a new epoch."""
    fence = await publish(replica, "x", "y")
    if spoil[0][0] != "XADD":
        await client.delete(HISTORY)
    for command in spoil:
        await client.execute_command(*command)
    async with listening(replica) as ear:
        made = await replica.publish(outgoing("a", "b", "c"), FRESH)
        assert made.epoch != fence.position.epoch
        assert made[1:] == (1, 3, 1, False)
        assert await heard(ear) == (made.epoch, [(1, "a"), (2, "b"), (3, "c")])
    assert await kept(replica) == [(1, "a"), (2, "b"), (3, "c")]
    assert await replica.position(FRESH) == (made.epoch, 3)
    assert await replica.publish(outgoing("a", "b", "c"), FRESH) == made


async def test_history_of_another_type(replica: RedisTransport, client: Any) -> None:
    """A history of another type reads as empty, which proves a fork to a replica that has delivered events."""
    fence = await publish(replica, "a")
    await client.delete(HISTORY)
    await client.set(HISTORY, "x")
    assert await replica.read(1, 9) == (fence.position, 2, [], 2, "")
    assert await replica.position(FRESH) == fence.position
    epoch, sequence = await replica.position(fence)
    assert epoch != fence.position.epoch
    assert sequence == 0
    assert not await client.exists(HISTORY)


@cases(UNUSABLE_RECORDS)
async def test_unusable_record(replica: RedisTransport, client: Any, spoil: list[tuple[object, ...]]) -> None:
    """An invalid idempotency record is ignored and replaced."""
    for command in spoil:
        await client.execute_command(*command)
    made = await replica.publish(outgoing("a"), FRESH)
    assert made[1:] == (1, 1, 0, False)
    assert await replica.publish(outgoing("a"), FRESH) == made
    assert await kept(replica) == [(1, "a")]


async def test_junk_in_the_history(replica: RedisTransport, client: Any) -> None:
    """Invalid entries of the history are skipped, even those under a number in use."""
    (_, tail), (_, nested) = event("forged"), event("nested", b"[" * 100_000 + b"]" * 100_000)
    junk: list[dict[str, Any]] = [
        {"id": "x"},
        {"x": "y"},
        {"id": "x", "event": ""},
        {"id": "x", "event": "}"},
        {"id": "x", "event": b',"id":"x","type":"event","data":{"x":"\xff"}}'},
        {"id": "x", "event": nested},
    ]
    await publish(replica, "a")
    for number, fields in enumerate(junk, 2):
        await client.xadd(HISTORY, fields, f"{number}-0")
        await client.xadd(HISTORY, {"id": "forged", "event": tail}, f"{number}-5")
    assert await kept(replica) == [(1, "a")]


# --- refusals


@contextlib.asynccontextmanager
async def refusing(client: Any, cause: str) -> AsyncIterator[None]:
    """Let the server refuse writes."""
    if cause == "READONLY":
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
    else:
        await client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await client.execute_command("REPLICAOF", "NO", "ONE")
        await client.config_set("maxmemory", 0)


@pytest.mark.parametrize("cause", ["READONLY", "OOM"])
async def test_refused_writes(replica: RedisTransport, client: Any, cause: str) -> None:
    """A refused write raises an error of its own, and leaves nothing half-written."""
    fence = await publish(replica, "a")
    before = await everything(client)
    async with connected(client_url(client)) as other, listening(other) as ear:
        async with refusing(client, cause):
            for _ in range(2):
                publishes = (replica.publish(outgoing(f"{n}", f"{n}b"), fence) for n in range(3))
                for refusal in await asyncio.gather(*publishes, return_exceptions=True):
                    assert isinstance(refusal, WriteRefused)
                with pytest.raises(WriteRefused):
                    await replica.position(fence, probe=True)
                assert await replica.position(fence) == fence.position
            assert await everything(client) == before
        again = await publish(replica, "c")
        assert again.position == (fence.position.epoch, 2)
        assert await heard(ear) == (fence.position.epoch, [(2, "c")])


@pytest.mark.parametrize(
    "rule",
    ["-xadd", "-hset", "-publish", "-set", "-del", "-get", "-hmget", "-xrange", "-evalsha", "-script", "resetchannels"],
)
@pytest.mark.parametrize("begins", [False, True], ids=["", "new epoch due"])
async def test_forbidden(each_redis_url: str, client: Any, rule: str, begins: bool) -> None:
    """If the user lacks one permission that a publish needs, nothing of it is done."""
    if (await client.info("server"))["redis_version"] < "7":
        pytest.skip("Redis 6.2 cannot be asked beforehand")
    await client.execute_command("ACL", "SETUSER", "replica", "reset", "on", ">secret", "~*", "&*", "+@all", rule)
    path = each_redis_url.removeprefix("unix://")
    async with connected(each_redis_url) as free, connected(f"unix://replica@{path}?password=secret") as bound:
        fence = await publish(free, "a")
        if begins:
            fence = fence._replace(id="another past")
        if rule == "-script":
            await client.script_flush()
        before = await everything(client)
        async with listening(free) as ear:
            with pytest.raises(WriteRefused, match=r"^Redis refuse") as refusal:
                await bound.publish(outgoing("b", "c"), fence)
            assert "secret" not in str(refusal.value)
            with pytest.raises(WriteRefused):
                await bound.position(fence, probe=True)
            if begins and rule not in ("-get", "-set"):
                with pytest.raises(WriteRefused):
                    await bound.position(fence)
            assert await everything(client) == before
            after = await publish(free, "d", fence=fence)
            assert await heard(ear) == (after.position.epoch, [(after.position.sequence, "d")])
    await client.execute_command("ACL", "DELUSER", "replica")


async def test_reads_after_a_missed_deadline(each_redis_url: str, client: Any) -> None:
    """An answer that misses its deadline makes the next ones smaller; quick answers make them larger again."""
    async with connected(each_redis_url, deadline=0.4) as replica:
        large = [event(f"e{number}", b'"%s"' % (b"x" * 200_000)) for number in range(8)]
        await replica.publish(Outgoing("p", None, large), FRESH)
        for _ in range(2):
            await client.execute_command("CLIENT", "PAUSE", 500)
            await fails(replica.read(1, 8))
            await client.execute_command("CLIENT", "UNPAUSE")
        await client.execute_command("CLIENT", "PAUSE", 200)
        assert [len((await replica.read(1, 8)).entries) for _ in range(4)] == [1, 1, 2, 5]


async def test_a_history_full_of_foreign_entries(replica: RedisTransport, client: Any) -> None:
    """Entries of others that fill an answer do not stop the reader: the next part begins later."""
    await publish(replica, "a", "b")
    await client.delete(HISTORY)
    for number in range(1, 5):
        await client.xadd(HISTORY, {"event": "x" * 600_000}, id=f"1-{number}")
    page = await replica.read(1, 2)
    assert (page.entries, page.beyond) == ([], 2)


async def test_forbidden_reads(each_redis_url: str, client: Any) -> None:
    """A refused read raises an error instead of returning an empty history; so does a refused subscription."""
    await client.execute_command("ACL", "SETUSER", "replica", "reset", "on", "nopass", "~*", "+@all", "-xrange")
    async with connected(each_redis_url.replace("unix://", "unix://replica@") + "?password=any") as replica:
        with pytest.raises(WriteRefused):
            await replica.read(1, 2)
    await client.execute_command("ACL", "SETUSER", "replica", "+xrange", "-subscribe")
    async with connected(each_redis_url.replace("unix://", "unix://replica@") + "?password=any") as replica:
        await fails(anext(replica.listen(1)))
    await client.execute_command("ACL", "DELUSER", "replica")
    async with connected(each_redis_url) as replica:
        with pytest.raises(
            WriteRefused, match=r"^Redis refuses the command: ResponseError: Invalid stream ID specified"
        ):
            await replica.read(-1, 2)


async def test_wrong_credentials(each_redis_url: str) -> None:
    """Wrong credentials are named as such."""
    async with connected(each_redis_url.replace("unix://", "unix://nobody@") + "?password=sesame") as replica:
        with pytest.raises(TransportUnavailable, match=r"^Redis cannot be reached: AuthenticationError: Redis refused"):
            await replica.position(FRESH)


# --- the script, and calls of it that are shared


async def test_script_is_loaded_again(replica: RedisTransport, client: Any) -> None:
    """A server that has lost the script gets it again, and a shared call keeps its order."""
    await publish(replica, "a")
    await client.script_flush()
    await asyncio.gather(*(publish(replica, f"b{number}") for number in range(10)))
    assert await kept(replica, 2) == [(number + 2, f"b{number}") for number in range(10)]
    await client.script_flush()
    assert (await replica.position(FRESH)).sequence == 11


# The script's answer to a publish of one event.
NUMBERED = b"*4\r\n$1\r\ne\r\n:1\r\n:0\r\n*1\r\n*5\r\n$1\r\ne\r\n:1\r\n:1\r\n:0\r\n:0\r\n"
NOSCRIPT = b"-NOSCRIPT No matching script.\r\n"


async def test_script_cannot_be_loaded() -> None:
    """A server that does not keep the script counts as one that refuses writes."""
    async with ScriptedRedis(lambda _: NOSCRIPT) as server, connected(server.url) as replica:
        with pytest.raises(WriteRefused):
            await replica.publish(outgoing("a"), FRESH)
        with pytest.raises(WriteRefused):
            await replica.position(FRESH)


async def test_not_redis() -> None:
    """A server that does not speak the protocol counts as unreachable."""
    async with ScriptedRedis(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as server, connected(server.url) as replica:
        await fails(replica.position(FRESH))
        await fails(replica.publish(outgoing("a"), FRESH))
        await fails(anext(replica.listen(1)))


async def test_publishes_share_calls(redis_url: str) -> None:
    """Publishes that arrive while a call is in flight share the next one, in order."""
    async with Proxy(redis_url) as proxy, connected(proxy.url) as replica:
        await publish(replica, "first")
        carried = proxy.carried
        made = await asyncio.gather(*(replica.publish(outgoing(f"e{number}"), FRESH) for number in range(50)))
        assert [publication.first for publication in made] == list(range(2, 52))
        assert proxy.carried - carried <= 3
        assert proxy.connections == 1


async def test_a_group_is_announced_at_once(redis_url: str) -> None:
    """The events of publishes that share a call are announced in one payload, in order."""
    async with Proxy(redis_url) as proxy, connected(proxy.url) as replica, listening(replica) as ear:
        await asyncio.gather(*(replica.publish(outgoing(f"{number}", f"{number}b"), FRESH) for number in range(40)))
        batch = await hear(ear)
        (first, *others) = batch.announcements
        while sum(len(announcement.events) for announcement in (first, *others)) < 80:
            others += (await hear(ear)).announcements
        entries = [entry for announcement in (first, *others) for entry in announcement.events]
        assert [entry.sequence for entry in entries] == list(range(1, 81))
        assert [entry.id for entry in entries[:2]] == ["0", "0b"]
        assert len(others) <= 1, "two calls at most: the first may have gone alone"


async def test_keys_that_meet_in_one_call(replica: RedisTransport) -> None:
    """The same key twice in one call is published once, and both publishes get the receipt."""
    calls = [outgoing("a", key="k"), outgoing("b", key="k"), outgoing("c"), outgoing("d", key="k"), outgoing("c")]
    made = await asyncio.gather(*(replica.publish(call, FRESH) for call in calls))
    assert [publication.first for publication in made] == [1, 1, 2, 1, 2]
    assert [publication.replayed for publication in made] == [False, True, False, True, False]
    assert len({(publication.epoch, publication.subscribers) for publication in made}) == 1
    again = await asyncio.gather(*(replica.publish(call, FRESH) for call in (outgoing("e", key="k"), outgoing("f"))))
    assert [(publication.first, publication.replayed) for publication in again] == [(1, True), (3, False)]
    # no new event: the stored receipts answer alone
    made = await asyncio.gather(*(replica.publish(call, FRESH) for call in (calls[1], calls[2])))
    assert [(publication.first, publication.replayed) for publication in made] == [(1, True), (2, False)]
    assert await kept(replica, 1) == [(1, "a"), (2, "c"), (3, "f")]


@pytest.mark.parametrize("bounds", [("MOST_HEARD", 3), ("MOST_BYTES", 100)])
async def test_batches_are_bounded(redis_url: str, monkeypatch: pytest.MonkeyPatch, bounds: tuple[str, int]) -> None:
    """A batch of a subscription is bounded in messages and in bytes."""
    monkeypatch.setattr(transport_module, *bounds)
    async with connected(redis_url) as replica, listening(replica) as ear:
        for number in range(8):
            await publish(replica, f"e{number}")
        sizes: list[int] = []
        events: list[str] = []
        while len(events) < 8:
            batch = await hear(ear)
            sizes.append(len(batch.announcements))
            events += [entry.id for announcement in batch.announcements for entry in announcement.events]
        assert max(sizes) <= 3
        assert events == [f"e{number}" for number in range(8)]


# --- connections


async def all_calls_fail(replica: RedisTransport) -> None:
    """Check that every call raises TransportUnavailable."""
    calls = replica.position(FRESH), replica.publish(outgoing("a"), FRESH), replica.read(1, 1), anext(replica.listen(1))
    await asyncio.wait_for(asyncio.gather(*(fails(call) for call in calls)), 3)


async def test_connection_refused(redis_url: str) -> None:
    """Without a server every call fails at once, and it works again when the server is back."""
    async with Proxy(redis_url) as proxy, connected(proxy.url) as replica:
        await proxy.set_mode(ProxyMode.SHUT)
        await all_calls_fail(replica)
        await proxy.set_mode(ProxyMode.PASS)
        await publish(replica, "a")
        await proxy.set_mode(ProxyMode.REFUSE)
        await all_calls_fail(replica)
        await proxy.set_mode(ProxyMode.PASS)
        async with listening(replica):
            assert await kept(replica) == [(1, "a")]
    async with connected("unix:///nowhere/redis.sock") as replica:
        await all_calls_fail(replica)


@pytest.mark.parametrize("mode", [ProxyMode.SWALLOW, ProxyMode.DEAF])
async def test_black_hole(redis_url: str, mode: ProxyMode) -> None:
    """Every command has a deadline; its event is published once, whether or not the answer was lost."""
    async with Proxy(redis_url) as proxy, connected(proxy.url, deadline=0.25) as replica:
        fence = await publish(replica, "before")
        await replica.read(1, 1)
        await proxy.set_mode(mode)
        await all_calls_fail(replica)
        proxy.cut()
        await proxy.set_mode(ProxyMode.PASS)
        await eventually(lambda: proxy.open == 0)
        made = await replica.publish(outgoing("a"), fence)
        assert made[1:] == (2, 1, 0, False)
        assert await kept(replica) == [(1, "before"), (2, "a")]


async def test_slow_answers() -> None:
    """The deadline is for the whole call, even if parts of the answer keep arriving."""
    async with (
        ScriptedRedis(lambda _: NUMBERED, delay=0.06) as server,
        connected(server.url, deadline=0.15) as replica,
    ):
        await fails(replica.publish(outgoing("a"), FRESH))


async def test_dead_connections_are_left(redis_url: str) -> None:
    """After one missed deadline all connections of its kind are closed."""
    async with Proxy(redis_url) as proxy, connected(proxy.url, deadline=0.25) as replica:
        await asyncio.gather(*(replica.read(1, 1) for _ in range(3)))
        assert proxy.open == 3
        proxy.freeze()
        await fails(replica.read(1, 1))
        await asyncio.gather(*(replica.read(1, 1) for _ in range(3)))


async def test_subscription_into_a_black_hole(redis_url: str) -> None:
    """A subscription that is lost while Redis is unreachable ends within the deadline too."""
    async with Proxy(redis_url) as proxy, connected(proxy.url, deadline=0.25) as replica, listening(replica) as ear:
        await proxy.set_mode(ProxyMode.SWALLOW)
        proxy.cut()
        await ends(ear, within=1.5)


async def test_lost_answer(redis_url: str) -> None:
    """A publish whose answer is lost fails, and its retry is given the same number."""
    async with Proxy(redis_url) as proxy, connected(proxy.url) as replica, connected(redis_url) as observer:
        await publish(replica, "before")
        await proxy.set_mode(ProxyMode.DEAF)
        waiting = asyncio.gather(*(fails(replica.publish(outgoing(id), FRESH)) for id in "abc"))

        async def published() -> bool:
            return len(await kept(observer)) == 4

        await eventually(published)
        proxy.cut()
        await proxy.set_mode(ProxyMode.PASS)
        await waiting
        for number, id in enumerate("abc", 2):
            assert (await replica.publish(outgoing(id), FRESH))[1:] == (number, 1, 0, False)
        assert len(await kept(replica)) == 4


async def reset_while_idle(url: str) -> None:
    """Publish over a reset connection; an error, if any, is the kernel's, and the next try works."""
    async with Proxy(url) as proxy, connected(proxy.url) as replica:
        for name in "ab":
            await publish(replica, name)
            await replica.position(FRESH)
            proxy.cut(reset=True)
            await eventually(lambda: proxy.open == 0)
            for call in (publish(replica, f"{name}2"), replica.position(FRESH)):
                with contextlib.suppress(TransportUnavailable):
                    await call
            await publish(replica, f"{name}3")
            await replica.position(FRESH)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_connection_reset(redis_url: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A reset connection raises TransportUnavailable on every event loop, uvloop's included."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(reset_while_idle(redis_url))


async def test_close_answers_everybody(redis_url: str) -> None:
    """`close` leaves no call waiting, neither one under way nor one that has just been made."""
    async with Proxy(redis_url) as proxy, connected(proxy.url) as replica:
        newcomer = asyncio.create_task(fails(replica.publish(outgoing("a"), FRESH)))
        await asyncio.sleep(0)
        await replica.close()  # before the task that would send it has started
        await asyncio.wait_for(newcomer, 2)
        await publish(replica, "b")
        carried = proxy.carried
        await proxy.set_mode(ProxyMode.DEAF)
        calls = replica.publish(outgoing("c"), FRESH), replica.position(FRESH), replica.read(1, 1)
        under_way = asyncio.gather(*(fails(call) for call in calls))
        await eventually(lambda: proxy.carried >= carried + 3)
        late = asyncio.create_task(fails(replica.publish(outgoing("d"), FRESH)))
        await asyncio.sleep(0)
        await asyncio.wait_for(replica.close(), 2)
        await asyncio.wait_for(asyncio.gather(under_way, late), 2)
        await proxy.set_mode(ProxyMode.PASS)
        await publish(replica, "e")
        assert "d" not in [id for _, id in await kept(replica)]


@pytest.mark.parametrize("call", ["position", "publish", "read", "listen"])
async def test_dropped_at_any_moment(redis_url: str, call: str) -> None:
    """Connections may be dropped at any moment while they are made or used."""
    calls: dict[str, Callable[[RedisTransport], Awaitable[object]]] = {
        "position": lambda replica: replica.position(FRESH),
        "publish": lambda replica: replica.publish(outgoing("a"), FRESH),
        "read": lambda replica: replica.read(1, 9),
        "listen": lambda replica: anext(replica.listen(1)),
    }
    outcomes = set()
    for turns in range(60):
        async with connected(redis_url) as replica:
            under_way = asyncio.ensure_future(calls[call](replica))
            for _ in range(turns):
                await asyncio.sleep(0)
            await replica.disconnect()
            try:
                await asyncio.wait_for(under_way, 10)
                outcomes.add("done")
            except TransportUnavailable:
                outcomes.add("unavailable")
    assert "done" in outcomes


@pytest.mark.parametrize("by", ["publish", "trial"])
async def test_former_primary_is_left(redis_url: str, by: str) -> None:
    """READONLY closes all connections, that of the subscription too."""
    async with (
        redis.Redis.from_url(redis_url) as client,
        Proxy(redis_url) as proxy,
        connected(proxy.url) as replica,
        listening(replica) as ear,
    ):
        await publish(replica, "a")
        await replica.position(FRESH)
        assert proxy.open == 3
        async with refusing(client, "READONLY"):
            with pytest.raises(WriteRefused):
                await (publish(replica, "b") if by == "publish" else replica.position(FRESH, probe=True))
            await ends(ear)
            await eventually(lambda: proxy.open == 0)
        await publish(replica, "b")


async def test_interrupted_between_batches(redis_url: str) -> None:
    """A subscription that is dropped while its batch is handled is reported as broken."""
    async with connected(redis_url) as replica, listening(replica) as ear, connected(redis_url) as other:
        await publish(other, "a")
        assert (await heard(ear))[1] == [(1, "a")]
        await replica.close()
        await publish(other, "b")
        await ends(ear)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "Redis did not confirm the subscription"),
        (b"*3\r\n$7\r\nmessage\r\n$15\r\nsecurity_events\r\n$1\r\nx\r\n", "Redis did not confirm the subscription"),
        (
            b"*3\r\n$9\r\nsubscribe\r\n$15\r\nsecurity_events\r\n:1\r\n"
            b"*3\r\n$11\r\nunsubscribe\r\n$15\r\nsecurity_events\r\n:0\r\n",
            "the subscription was interrupted",
        ),
    ],
)
async def test_subscription_that_is_none(answer: bytes, said: str) -> None:
    """A subscription counts once it is confirmed, and until it is unsubscribed."""
    async with ScriptedRedis(lambda _: answer) as server, connected(server.url, deadline=0.25) as replica:
        with pytest.raises(TransportUnavailable, match=said):
            async for _ in replica.listen(0.05):
                pass


async def test_killed_server() -> None:
    """When the server dies the link breaks; when it is back, a new epoch starts."""
    server = EmbeddedValkey()
    url = server.start()
    supervisor = asyncio.create_task(server.supervise())
    async with connected(url) as replica, listening(replica) as ear:
        fence = await publish(replica, "a", "b")
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        await ends(ear)

        found: list[Position] = []

        async def back() -> bool:
            with contextlib.suppress(TransportError):
                found.append(await replica.position(fence))
            return bool(found)

        await eventually(back)
        assert found[0].epoch != fence.position.epoch
        assert found[0].sequence == 0
        assert (await publish(replica, "c", fence=fence))[:2] == ((found[0].epoch, 1), "c")
    server.stop()
    await supervisor


# --- metrics and contexts


async def test_what_others_put_into_the_history_is_not_counted(replica: RedisTransport, client: Any) -> None:
    """The depth of a history without valid events is 0."""
    fence = await publish(replica, "a")
    for id in ("999999-0", "9" * 18 + "-0", "7-1"):
        await client.delete(HISTORY)
        await client.xadd(HISTORY, {"x": "y"}, id=id)
        await replica.position(fence)
        assert replica.kept == 0


NAME: ContextVar[str] = ContextVar("NAME", default="nobody")


class Host(Observer):
    """An observer that runs each call in the context of the publish with this name."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.shared: list[list[str]] = []
        self.waited: list[list[float]] = []

    def sharing(self, contexts: Sequence[Context], waited: Sequence[float]) -> Context | None:
        """Record which publishes share a call, and choose one."""
        names = [context.run(NAME.get) for context in contexts]
        self.shared.append(names)
        self.waited.append(list(waited))
        return contexts[names.index(self.wanted)] if self.wanted in names else None


@pytest.mark.parametrize("wanted", ["second", "nobody of them"])
async def test_a_call_runs_in_the_context_that_is_chosen(
    each_redis_url: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishes that share a call are reported, and the call runs in the context of one of them."""
    host = Host(wanted)
    seen: list[str] = []

    async def named(transport: RedisTransport, name: str) -> None:
        NAME.set(name)
        await transport.publish(outgoing(name), FRESH)

    async with connected(each_redis_url, observers=[host]) as transport:
        await publish(transport, "script is loaded")
        execute = redis.Redis.execute_command

        async def executed(client: Any, *command: Any) -> Any:
            seen.append(NAME.get())
            return await execute(client, *command)

        monkeypatch.setattr(redis.Redis, "execute_command", executed)
        await asyncio.gather(*(named(transport, name) for name in ("first", "second", "third")))
    assert host.shared[-1] == ["first", "second", "third"]
    assert seen == ["second" if wanted == "second" else "first"]


async def test_the_wait_for_a_call_is_reported(redis_url: str) -> None:
    """An observer is told for how many seconds each publish waited for the call before it."""
    host = Host("nobody")
    async with Proxy(redis_url) as proxy, connected(proxy.url, observers=[host]) as transport:
        await publish(transport, "script is loaded")
        await proxy.set_mode(ProxyMode.DEAF)
        first = asyncio.create_task(transport.publish(outgoing("first"), FRESH))
        await asyncio.sleep(0)
        others = [asyncio.create_task(transport.publish(outgoing(name), FRESH)) for name in ("second", "third")]
        await asyncio.sleep(0.2)
        await proxy.set_mode(ProxyMode.PASS)
        await asyncio.gather(first, *others)
    (alone,), later = host.waited[-2:]
    assert 0 <= alone < 0.1
    assert len(later) == 2
    assert all(0.2 <= seconds < 5 for seconds in later)


async def test_a_call_in_a_chosen_context_is_given_up(each_redis_url: str) -> None:
    """A publish in flight ends with an error when the transport is closed, whatever context it runs in."""
    async with connected(each_redis_url, observers=[Host("nobody")]) as transport:
        waiting = asyncio.create_task(transport.publish(outgoing("a"), FRESH))
        await asyncio.sleep(0)
        await transport.close()
        await fails(waiting)

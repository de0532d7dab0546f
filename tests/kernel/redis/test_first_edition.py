"""A rolling upgrade from the first edition: what it has written is understood, and it understands what is written."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
import redis.asyncio as redis

from kernel.log.envelope import decode_announcement
from kernel.log.transport import Outgoing
from kernel.position import Fence, Position
from kernel.redis.transport import RedisTransport
from tests.first_edition import ANNOUNCEMENTS, CHANNEL, REDIS, SCRIPT, Announcement
from tests.transport_helpers import FRESH, event, hear, kept, listening, publish

pytestmark = pytest.mark.real_time

EPOCH = REDIS["position"]["epoch"]
POSITION, HISTORY = f"{{{CHANNEL}}}:position", f"{{{CHANNEL}}}:history"


async def filled(client: Any) -> None:
    """Put into Redis what the first edition left there."""
    await client.hset(POSITION, mapping=REDIS["position"])
    for id, fields in REDIS["history"]:
        await client.xadd(HISTORY, fields, id=id)
    for key, record in REDIS["records"].items():
        await client.set(key, record)


async def old_publish(client: Any, id: str, fence: Fence = FRESH) -> list[Any]:
    """Publish as a replica of the first edition does."""
    (epoch, sequence), delivered = fence[:2]
    _, tail = event(id)
    keys = (POSITION, HISTORY, f"{{{CHANNEL}}}:idempotency:{id}")
    arguments = (CHANNEL, 100, "new-epoch", epoch, sequence, delivered, id, 60_000, f"{id} {len(tail)}", tail)
    answer: list[Any] = await client.eval(SCRIPT, len(keys), *keys, *arguments)
    return answer


def test_its_announcements() -> None:
    """Announcements of the first edition are decoded; they do not say which event is before them."""
    decoded = [decode_announcement(payload) for payload in ANNOUNCEMENTS]
    outlines = [(a.epoch, a.after, [entry.sequence for entry in a.events]) for a in decoded if a is not None]
    assert outlines == [(EPOCH, None, []), (EPOCH, None, [1]), (EPOCH, None, [2, 3])]


async def test_its_history_and_its_records(each_redis_url: str) -> None:
    """Its history is read, and its records answer its publishes, with and without a key."""
    replica = RedisTransport(each_redis_url)
    async with redis.Redis.from_url(each_redis_url) as client:
        await filled(client)
        entries = (await replica.read(1, 10, witness=3)).entries
        assert [(e.sequence, e.id) for e in entries] == [(n, REDIS["history"][n - 1][1]["id"]) for n in (1, 2, 3)]
        newest = Fence(Position(EPOCH, 3), entries[-1].id, (3, entries[-1].id))
        assert await replica.position(newest) == newest.position
        for key, record in REDIS["records"].items():
            id, _, first, count, _ = record.split()
            name = key.rpartition(":")[2]
            again = Outgoing(id, "POST /broadcast/event first" if name != id else None, [event("again")])
            made = await replica.publish(again, newest)
            assert (made.epoch, made.first, made.size, made.replayed) == (EPOCH, int(first), int(count), False)
        assert (await publish(replica, "new", fence=newest)).position == (EPOCH, 4)
    await replica.close()


async def test_it_understands_what_is_written_now(each_redis_url: str) -> None:
    """The first edition's own definitions accept today's announcements, those of a new epoch included."""
    replica = RedisTransport(each_redis_url)
    async with redis.Redis.from_url(each_redis_url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)
        epoch, _ = await replica.position(FRESH)
        await publish(replica, "a", "b")
        await publish(replica, "c")
        payloads: list[bytes] = []
        async with asyncio.timeout(5):
            while len(payloads) < 3:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
                payloads += [message["data"]] if message else []
        decoded = [msgspec.json.decode(payload, type=Announcement) for payload in payloads]
        assert [(a.epoch, [e.sequence for e in a.events]) for a in decoded] == [
            (epoch, []),
            (epoch, [1, 2]),
            (epoch, [3]),
        ]
        assert [json.loads(payload)["after"] for payload in payloads] == ["", "", "b"]
        # its script reads today's position and records
        fence = Fence(Position(epoch, 3), "c")
        assert (await old_publish(client, "old", fence))[:2] == [epoch.encode(), 4]
        assert (await old_publish(client, "publish-of-c", fence))[3][0][:3] == [epoch.encode(), 3, 1]
    await replica.close()


async def test_its_publishes_beside_a_new_replica(each_redis_url: str) -> None:
    """Publishes of both editions follow each other; where the old one was last, the history says what is before."""
    replica = RedisTransport(each_redis_url)
    fence = FRESH
    async with redis.Redis.from_url(each_redis_url) as client, listening(replica) as ear:
        for number in range(6):
            id = f"e{number}"
            if number % 3 == 1:
                await old_publish(client, id)
                fence = fence._replace(position=fence.position._replace(sequence=number + 1), id=id)
            else:
                fence = await publish(replica, id, fence=fence)
            (announcement,) = (await hear(ear)).announcements
            assert announcement.after == (None if number % 3 == 1 else f"e{number - 1}" if number else "")
        assert await kept(replica) == [(number + 1, f"e{number}") for number in range(6)]
    await replica.close()

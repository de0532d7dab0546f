"""Streams and polls while Redis is away, before it was ever reached, and across a change of the epoch."""

import asyncio
import time
from typing import Any

import httpx

from tests.system.event_stream import event_stream
from tests.system.fault_environment import FaultEnvironment
from tests.system.replica import Replica
from tests.waiting import eventually

FAST = {"websocket_ping_interval_seconds": 0.1, "message_buffer_size": 5}


async def poll(replica: Replica, **query: Any) -> httpx.Response:
    """Poll, and return the response."""
    return await replica.request("GET", "/events/poll", params=query)


async def test_before_redis_was_reached(env: FaultEnvironment) -> None:
    """A stream has no ids until Redis is reached, which it is told; a poll is refused until then."""
    env.server.kill()
    [replica] = await env.start_replicas(ready=False, **FAST)
    async with event_stream(replica) as fresh, event_stream(replica, headers={"Last-Event-ID": "e:5"}) as resumed:
        for stream in (fresh, resumed):
            assert (await stream.named("connected")).data["epoch"] == ""
            await stream.until(lambda stream=stream: stream.comments >= 2)
            assert stream.last_id == ""
        for query in ({}, {"since": 0, "wait": 0}):
            refused = await poll(replica, **query)
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        env.server.start()
        told = await fresh.named("epoch_changed")
        assert told.id == ""
        acked = await resumed.named("resync_ack")
        assert (acked.data["epoch_changed"], acked.data["recovered"]) == (True, False)
        [number] = await env.publish(replica)
        for stream in (fresh, resumed):
            assert (await stream.named("message")).id == f"{told.data['epoch']}:{number}"


async def test_redis_away(env: FaultEnvironment) -> None:
    """While Redis is away, memory answers what it can; the rest waits, as a stream, or as a poll up to its `wait`."""
    [replica] = await env.start_replicas(**FAST)
    numbers = await env.publish(replica, 20)
    assert numbers[-1] is not None
    await replica.delivers(numbers[-1])
    epoch = replica.health()["epoch"]
    env.server.freeze()
    held = await poll(replica, since=numbers[-3], epoch=epoch, wait=0)
    assert [frame.get("sequence") for frame in held.json()["events"]] == numbers[-2:]
    asked = [("e", 5), (epoch, 3), (epoch, numbers[-1] + 1)]
    headers = [{"Last-Event-ID": f"{name}:{number}"} for name, number in asked]
    async with (
        event_stream(replica, headers=headers[0]) as other,
        event_stream(replica, headers=headers[1]) as old,
        event_stream(replica, headers=headers[2]) as beyond,
    ):
        begin = time.monotonic()
        refused = await asyncio.gather(*(poll(replica, since=n, epoch=name, wait=1.5) for name, n in asked))
        assert 1.4 < time.monotonic() - begin < 6
        for answer in refused:
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert [stream.last_id for stream in (other, old, beyond)] == ["", f"{epoch}:3", ""]
        assert other.comments
        waiting = [asyncio.create_task(poll(replica, since=n, epoch=name, wait=30)) for name, n in asked]
        await eventually(lambda: replica.metric("connections") == 6)
        env.server.thaw()
        assert (await other.named("resync_ack")).data["epoch_changed"]
        assert (await old.named("resync_ack")).data["recovered"]
        assert old.numbers == numbers[3:]
        assert (await beyond.named("resync_ack")).data["recovered"] is False
        changed, missed, lost = [(await task).json() for task in waiting]
        assert (changed["epoch_changed"], changed["epoch"], len(changed["events"])) == (True, epoch, 20)
        assert [frame["sequence"] for frame in missed["events"]] == numbers[3:]
        assert (lost["recovered"], lost["lastSeq"]) == (False, numbers[-1])


async def test_epoch_changes(env: FaultEnvironment) -> None:
    """A new epoch is told to a stream where it begins; a poll ends before it, and the next one is told."""
    [replica] = await env.start_replicas(**FAST)
    [last] = await env.publish(replica)
    async with event_stream(replica) as stream:
        old = (await stream.named("connected")).data["epoch"]
        waiting = asyncio.create_task(poll(replica, since=last, epoch=old, wait=30))
        await eventually(lambda: replica.metric("connections") == 2)
        env.server.link.flushall()
        told = await stream.named("epoch_changed")
        new = told.data["epoch"]
        assert new != old
        answer = (await waiting).json()
        assert (answer["epoch"], answer["lastSeq"], answer["events"]) == (old, last, [])
        await stream.until(lambda: stream.last_id == f"{new}:0")  # by a heartbeat
        [number] = await env.publish(replica)
        assert (await stream.named("message")).id == f"{new}:{number}"
        answer = (await poll(replica, since=answer["lastSeq"], epoch=answer["epoch"])).json()
        assert (answer["epoch_changed"], answer["recovered"], answer["epoch"]) == (True, False, new)
        assert [frame["sequence"] for frame in answer["events"]] == [number]

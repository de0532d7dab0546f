"""Continuity by identity, with real servers: a Redis that goes back in place, epochs that come back, lost answers."""

import asyncio
import re
import time
from typing import Any

import pytest

from kernel import RedisTransport
from tests.proxy import ProxyMode
from tests.system.client import PATIENCE, connected
from tests.system.fault_environment import FaultEnvironment, health, wait_for_health
from tests.system.producers import marked
from tests.system.redis_server import RedisServer
from tests.system.replica import ReplicaFactory
from tests.transport_helpers import publish
from tests.waiting import eventually

POSITION, HISTORY = "{security_events}:position", "{security_events}:history"
# The watched replica depends on its subscription; a position check comes only when something requests one.
RARE_CHECKS = {"position_check_seconds": 10, "supervision_interval_seconds": 600, "circuit_failure_threshold": 1000}


@pytest.mark.parametrize("trouble", ["none", "the check fails once", "the history is trimmed"])
async def test_fork_in_place(env: FaultEnvironment, trouble: str) -> None:
    """Redis goes back 5 events and another publisher adds 10 before any check: a new epoch, nothing lost."""
    (watched,) = await env.start_replicas(**RARE_CHECKS)
    await env.connect_clients()
    await env.publish(watched, 95)
    dump = env.server.dump()
    await env.publish(watched, 5)
    before, last = env.server.position
    await wait_for_health(watched, epoch=before, sequence=last)
    await env.recorders[0].reaches(before, last)
    if trouble == "the check fails once":
        env.proxies[0].cut_after(lambda piece: b"EVALSHA" in piece and b'"data":' not in piece)
    env.server.restore(dump)
    # it begins with what it finds, and has delivered nothing of its own
    other = RedisTransport(env.server.url)
    others = await publish(other, *(f"other-{number}" for number in range(10)))
    assert others.position == (before, 105)
    await other.close()
    if trouble == "the history is trimmed":
        env.server.link.xtrim(HISTORY, maxlen=2, approximate=False)
    await eventually(lambda: watched.health()["epoch"] not in ("", before), PATIENCE)
    epoch = await env.wait_until_delivered()
    assert env.proxies[0].cuts == (trouble == "the check fails once")
    await env.check_history()
    env.check_new_epoch(epoch)
    assert watched.metric("epoch_changes_total") == 1
    assert watched.metric("gaps_total") == 0


async def test_an_epoch_that_comes_back(env: FaultEnvironment) -> None:
    """Epoch A up to 60, Redis emptied, a dump of A at 50 restored: a third epoch, and A:60 is not called recovered."""
    (replica,) = await env.start_replicas()
    stays, leaves = await env.connect(replica), await env.connect(replica)
    await env.publish(replica, 50)
    dump = env.server.dump()
    await env.publish(replica, 10)
    first, _ = env.server.position
    for recorder in (stays, leaves):
        await recorder.reaches(first, 60)
    await leaves.leave()
    env.server.link.flushall()
    await eventually(lambda: replica.health()["epoch"] not in ("", first), PATIENCE)
    await env.publish(replica, 3)
    second, _ = env.server.position
    await stays.reaches(second, 3)
    env.server.restore(dump)
    await eventually(lambda: replica.health()["epoch"] not in ("", first, second), PATIENCE)
    third = (await health(replica))["epoch"]
    assert await env.publish(replica, 12) == list(range(1, 13))
    async with connected(replica.websocket(since=60, epoch=first)) as late:
        ack = await late.take(type="resync_ack")
        assert (ack["recovered"], ack.get("epoch_changed"), ack["epoch"]) == (False, True, third)
    await leaves.connect(replica)
    assert await env.wait_until_delivered() == third
    await env.check_history()
    told = [frame["epoch"] for frame in stays.frames if frame.get("type") == "epoch_changed"]
    assert told == [second, third]


async def test_receipt_of_a_lost_epoch(env: FaultEnvironment) -> None:
    """A receipt whose epoch Redis has lost is not given again: the event is published again, and delivered."""
    (replica,) = await env.start_replicas()
    client = await env.connect(replica)
    body = marked("event", "with a key")
    first = await replica.post("/broadcast/event", body, idempotency_key="k")
    assert (await replica.post("/broadcast/event", body, idempotency_key="k")).json() == first.json()
    env.server.link.delete(POSITION)
    await eventually(lambda: replica.health()["epoch"] not in ("", first.json()["epoch"]), PATIENCE)
    again = await replica.post("/broadcast/event", body, idempotency_key="k")
    assert again.status_code == 202
    assert again.json()["epoch"] != first.json()["epoch"]
    assert env.server.link.xlen(HISTORY) == 1
    await client.reaches(again.json()["epoch"], 1)
    await client.leave()


def numbered(server: RedisServer, mark: str) -> int:
    """Return how many events with this mark the history has."""
    return sum(mark.encode() in fields[b"event"] for _, fields in server.link.xrange(HISTORY))


async def test_a_lost_answer_and_a_partition(env: FaultEnvironment) -> None:
    """A lost answer, then a partition with many large publishes waiting: each event once, and answers in time."""
    settings = {
        "position_check_seconds": 0.5,
        "event_max_bytes": 1048576,
        "http_max_body_bytes": 2097152,
        "circuit_failure_threshold": 1000,
        "broadcast_max_delay_seconds": 0.2,
    }
    (replica,) = await env.start_replicas(**settings)
    (proxy,) = env.proxies
    client = await env.connect(replica)
    await env.publish(replica)
    large = "." * 600_000
    durations: list[float] = []

    async def post(mark: str, size: int) -> Any:
        body = marked("event", mark)
        body["reasoning"] = large[:size]
        begin = time.monotonic()
        answer = await replica.post("/broadcast/event", body)
        durations.append(time.monotonic() - begin)
        if answer.status_code == 202:
            env.history.receipt("event", body, answer.json())
        else:
            env.history.unknown("event", body)
        return answer.status_code

    def small(piece: bytes) -> bool:
        return b"mark-small" in piece

    proxy.cut_after(small)
    first = asyncio.ensure_future(post("mark-small", 0))
    await eventually(lambda: proxy.cuts == 1, PATIENCE)
    await proxy.set_mode(ProxyMode.SWALLOW)
    others = [asyncio.ensure_future(post(f"mark-large-{number}", 600_000)) for number in range(18)]
    # longer than an id is remembered: 10 s, the delays and five deadlines
    await asyncio.sleep(14)
    assert all(task.done() for task in (first, *others))
    # four attempts of 0.5 s, 0.65 s of delays, and what the machine needs for 18 bodies of 600 KB
    assert max(durations) < 6
    await proxy.set_mode(ProxyMode.PASS)
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    assert numbered(env.server, "mark-small") == 1
    for number in range(18):
        assert numbered(env.server, f'mark-large-{number}"') <= 1
    await client.leave()
    await env.check_history()


async def test_a_key_is_remembered_for_longer_than_its_retries(env: FaultEnvironment) -> None:
    """However long the delays between the retries are, a key's record outlives them."""
    settings = {"broadcast_max_retries": 1, "broadcast_base_delay_seconds": 300, "broadcast_max_delay_seconds": 300}
    (replica,) = await env.start_replicas(**settings)
    await replica.post("/broadcast/alert/deleted", {"id": "x"}, idempotency_key="k")
    (key,) = env.server.link.keys("*:idempotency:*")
    assert env.server.link.pttl(key) > 390_000


async def test_two_deployments_on_one_redis(env: FaultEnvironment, start: ReplicaFactory) -> None:
    """Two deployments on two databases of one Redis receive each other: the log says so once, and names the setting."""
    one, two = (start(redis_url=f"{env.server.url}?db={number}", position_check_seconds=0.3) for number in (0, 1))
    async with one.http() as at_one, two.http() as at_two:

        async def both() -> bool:
            for http in (at_one, at_two):
                await http.post("/broadcast/alert/deleted", json={"id": "x"})
            return all("Set REDIS_EVENT_CHANNEL" in replica.log for replica in (one, two))

        await eventually(both, PATIENCE)
        for _ in range(20):
            await both()
    for replica in (one, two):
        assert len(re.findall("Set REDIS_EVENT_CHANNEL", replica.log)) == 1
        replica.stop()

"""Polling at `/events/poll` (protocol: polling)."""

import asyncio
import random
from typing import Any

import httpx
import pytest

from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually


async def publish(replica: Replica, *ids: str, type: str = "alert_deleted") -> list[dict[str, Any]]:
    """Publish an event for each id; return the receipts."""
    further = {"detected_at": "t", "change_type": "unknown", "similarity_score": 0.5}
    data = [{"id": 1, "camera_id": id, **further} if type == "scene_change" else {"id": id} for id in ids]
    answer = await replica.post("/broadcast/batch", [{"type": type, "data": each} for each in data])
    receipts: list[dict[str, Any]] = answer.json()["receipts"]
    return receipts


async def poll(replica: Replica, **query: object) -> dict[str, Any]:
    """Poll, and return the answer, which must be a 200."""
    answer = await ask(replica, **query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


async def ask(replica: Replica, **query: object) -> httpx.Response:
    """Poll, and return the response."""
    return await replica.request("GET", "/events/poll", params={name: str(value) for name, value in query.items()})


def ids(answer: dict[str, Any]) -> list[str]:
    """The ids of the events of an answer."""
    assert not any("replay" in frame for frame in answer["events"])
    return [frame["data"].get("id") for frame in answer["events"]]


async def test_position_alone(replica: Replica) -> None:
    """Without `since` the answer is the position alone, at once."""
    [receipt] = await publish(replica, "a")
    await replica.delivers(receipt["sequence"])
    expected = {"epoch": receipt["epoch"], "lastSeq": receipt["sequence"], "events": [], "recovered": True}
    assert await poll(replica) == expected


async def test_events_after_a_position(replica: Replica, other: Replica) -> None:
    """With a position every event after it comes at once, as when live, from any replica."""
    before = await poll(replica)
    place = {"since": before["lastSeq"], "epoch": before["epoch"]}
    receipts = await publish(replica, "a", "b")
    await other.delivers(receipts[-1]["sequence"])
    answer = await poll(other, **place)
    assert (ids(answer), answer["lastSeq"], answer["recovered"]) == (["a", "b"], receipts[-1]["sequence"], True)
    assert "more" not in answer


@pytest.mark.parametrize("form", ["since", "last_event_id", "header"])
async def test_waiting(replica: Replica, form: str) -> None:
    """A poll at the newest event waits for the next one that matches."""
    place = await poll(replica)
    id = f"{place['epoch']}:{place['lastSeq']}"
    query: dict[str, Any] = {"events": "scene_change", "wait": 20}
    headers = {"Last-Event-ID": id} if form == "header" else {}
    query |= {"since": place["lastSeq"]} if form == "since" else {}
    query |= {"last_event_id": id} if form == "last_event_id" else {}
    waiting = asyncio.create_task(replica.request("GET", "/events/poll", params=query, headers=headers))
    await eventually(lambda: replica.metric("connections") == 1)
    await publish(replica, "a")
    [receipt] = await publish(replica, "front", type="scene_change")
    answer = (await waiting).json()
    assert [frame["data"]["camera_id"] for frame in answer["events"]] == ["front"]
    assert answer["lastSeq"] == receipt["sequence"]
    await eventually(lambda: replica.metric("connections") == 0)


async def test_waited_long_enough(replica: Replica) -> None:
    """A poll that has waited gets an empty list, and a position that passes what did not match."""
    place = await poll(replica)
    waiting = asyncio.create_task(poll(replica, since=place["lastSeq"], events="scene_change", wait=0.5))
    await asyncio.sleep(0.1)
    [receipt] = await publish(replica, "a")
    assert await waiting == {
        "epoch": receipt["epoch"],
        "lastSeq": receipt["sequence"],
        "events": [],
        "recovered": True,
    }


async def test_full_page(replica: Replica) -> None:
    """At most 1,000 events come at once; then `more` says so."""
    place = await poll(replica)
    for _ in range(3):
        receipts = await publish(replica, *map(str, range(400)))
    first = await poll(replica, since=place["lastSeq"], epoch=place["epoch"])
    assert (len(first["events"]), first["more"], first["lastSeq"]) == (1000, True, place["lastSeq"] + 1000)
    second = await poll(replica, since=first["lastSeq"], epoch=first["epoch"])
    assert (len(second["events"]), "more" in second) == (200, False)
    assert second["lastSeq"] == receipts[-1]["sequence"]


async def test_verdicts(replica: Replica) -> None:
    """Another epoch and a number beyond the newest are told, with the position from which to go on."""
    [receipt] = await publish(replica, "a")
    await replica.delivers(receipt["sequence"])
    answer = await poll(replica, since=5, epoch="other")
    assert (answer["recovered"], answer["epoch_changed"], answer["epoch"]) == (False, True, receipt["epoch"])
    answer = await poll(replica, since=10**9, wait=0)
    assert (answer["recovered"], answer["events"], answer["lastSeq"]) == (False, [], receipt["sequence"])


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"since": "x"}, "since"),
        ({"epoch": "e"}, "epoch"),
        ({"wait": 61}, "wait"),
        ({"wait": "nan"}, "wait"),
        ({"wait": "-1"}, "wait"),
        ({"events": "x" * 257}, "events"),
        ({"last_event_id": "x"}, "last_event_id"),
    ],
)
async def test_unusable_parameter(replica: Replica, query: dict[str, Any], field: str) -> None:
    """A parameter that cannot be used is a 400 that names it."""
    answer = await ask(replica, **query)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_drain(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A drain ends the wait with what there is."""
    replica = start(redis_url=valkey, redis_event_channel=channel, drain_seconds=0.5)
    place = await poll(replica)
    waiting = asyncio.create_task(poll(replica, since=place["lastSeq"], wait=60))
    await eventually(lambda: replica.metric("connections") == 1)
    replica.signal()
    answer = await waiting
    assert (answer["events"], answer["lastSeq"]) == ([], place["lastSeq"])
    assert await asyncio.to_thread(replica.ended) == 0


async def test_client_that_leaves(replica: Replica) -> None:
    """A client that leaves while it waits is no connection any more."""
    async with replica.http() as client:
        waiting = asyncio.create_task(client.get("/events/poll?since=0&events=no&wait=60"))
        await eventually(lambda: replica.metric("connections") == 1)
        waiting.cancel()
    await eventually(lambda: replica.metric("connections") == 0)


async def test_any_sequence_of_polls(replica: Replica, other: Replica) -> None:
    """Polls of both replicas, with filters and any waits, lose and repeat nothing while events are published."""
    random.seed(17)
    place = await poll(replica)
    seen: list[str] = []
    published: list[str] = []

    async def produce() -> None:
        for number in range(60):
            batch = [f"{number}-{index}" for index in range(random.choice([1, 2, 30]))]
            await publish(random.choice([replica, other]), *batch)
            published.extend(batch)
            await publish(replica, "x", type="scene_change")

    producing = asyncio.create_task(produce())
    async with asyncio.timeout(60):
        while not producing.done() or len(seen) < len(published):
            wait = random.choice([0, 0.01, 0.1])
            query = {"since": place["lastSeq"], "epoch": place["epoch"], "events": "alert.*", "wait": wait}
            answer = await poll(random.choice([replica, other]), **query)
            assert answer["recovered"]
            seen += ids(answer)
            place = answer
    assert sorted(seen) == sorted(published)
    assert len(set(seen)) == len(seen)

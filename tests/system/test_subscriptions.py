"""Subscriptions: which events a client receives, by patterns and the names of messages."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.history import NAMES, matches
from tests.system.client import Client, connected
from tests.system.producers import KINDS, marked, route_of
from tests.system.replica import Replica

EVENT_TYPES = {"camera_status": "camera.offline", "worker_status": "worker.health_check_failed"}


@pytest.fixture
async def client(other: Replica) -> AsyncIterator[Client]:
    """A client that has received its first frame."""
    async with connected(other.websocket()) as client:
        await client.next()
        yield client


async def publish(replica: Replica, *kinds: str) -> list[int]:
    """Publish one message of each kind, and return their sequence numbers."""
    items = [{"type": kind, "data": marked(kind, f"m{number}")} for number, kind in enumerate(kinds)]
    answer = await replica.post("/broadcast/batch", items)
    return [receipt["sequence"] for receipt in answer.json()["receipts"]]


async def received(replica: Replica, client: Client, *kinds: str) -> list[str]:
    """Publish these kinds, and return those that the client receives."""
    before = len(client.events)
    await client.reached((await publish(replica, *kinds))[-1])
    client.skip()
    return [frame["type"] for frame in client.events[before:]]


async def subscribe(client: Client, *patterns: str, action: str = "subscribe") -> dict[str, Any]:
    """Send a command and return the reply."""
    await client.send({"type": action, "data": {"events": list(patterns)}})
    return await client.next()


async def test_everything(replica: Replica, client: Client) -> None:
    """A client that never subscribed receives everything (protocol: subscriptions)."""
    assert await received(replica, client, *KINDS) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
async def test_names(replica: Replica, client: Client, kind: str) -> None:
    """A pattern matches a message's wire type and each of its further names, and no other name."""
    names = [kind, *NAMES.get(kind, [])] + ([EVENT_TYPES[kind]] if kind in EVENT_TYPES else [])
    for name in names:
        assert await subscribe(client, name) == {"action": "subscribed", "events": [name]}
        wanted = [each for each in KINDS if matches([name], each, marked(each, "x"))]
        assert kind in wanted
        assert await received(replica, client, *KINDS) == wanted
        assert await subscribe(client, name, action="unsubscribe") == {"action": "unsubscribed", "events": [name]}


@pytest.mark.parametrize(
    "patterns",
    [
        ["*"],
        ["ALERT.*"],
        ["alert_*ed"],
        ["alert.[cr]*"],
        ["alert.[!cr]*"],
        ["?vent"],
        ["camera.*"],
        ["detection.*", "event"],
        ["*.changed"],
        ["worker.health*", "service.status_*"],
        ["nothing"],
        ["event*", "event", "EVENT.CREATED"],
        ["[", "scene_change"],
    ],
)
async def test_globs(replica: Replica, patterns: list[str]) -> None:
    """Patterns are globs on lower-case names; each matching message arrives once."""
    wanted = [kind for kind in KINDS if matches(patterns, kind, marked(kind, "x"))]
    async with (
        connected(replica.websocket(events=",".join(patterns))) as asked,
        connected(replica.websocket()) as subscribed,
    ):
        await asked.next()
        await subscribed.next()
        answer = await subscribe(subscribed, *patterns)
        lowered = list(dict.fromkeys(pattern.lower() for pattern in patterns))
        assert answer == {"action": "subscribed", "events": lowered}
        for client in (asked, subscribed):
            assert await received(replica, client, *KINDS) == wanted


async def test_event_types_in_any_case(replica: Replica, client: Client) -> None:
    """The event type of a worker matches in lower case."""
    await subscribe(client, "worker.strange")
    await replica.post("/broadcast/worker-status", marked("worker_status", "w") | {"event_type": "Worker.STRANGE"})
    assert (await client.next())["data"]["event_type"] == "Worker.STRANGE"


async def test_patterns_add_up(replica: Replica, client: Client) -> None:
    """Patterns of several subscribes add up."""
    await subscribe(client, "event")
    assert await received(replica, client, "event", "scene_change", "summary_update") == ["event"]
    assert await subscribe(client, "SCENE_*") == {"action": "subscribed", "events": ["scene_*"]}
    assert await received(replica, client, "event", "scene_change", "summary_update") == ["event", "scene_change"]


async def test_channels_for_events(replica: Replica, client: Client) -> None:
    """`channels` is accepted in place of `events`, and types in any letter case."""
    await client.send({"type": "SUBSCRIBE", "data": {"channels": ["event"]}})
    assert await client.next() == {"action": "subscribed", "events": ["event"]}
    assert await received(replica, client, "scene_change", "event") == ["event"]
    await client.send({"type": "unsubscribe", "data": {"channels": ["event"]}})
    assert await client.next() == {"action": "unsubscribed", "events": ["event"]}


async def test_unsubscribe(replica: Replica, client: Client) -> None:
    """Unsubscribe removes the named patterns and reports those that it removed; the rest stays."""
    await subscribe(client, "event", "scene_change", "alert.*")
    answer = await subscribe(client, "EVENT", "never", "alert.*", action="unsubscribe")
    assert answer == {"action": "unsubscribed", "events": ["event", "alert.*"]}
    assert await received(replica, client, *KINDS) == ["scene_change"]


async def test_last_pattern_by_name(replica: Replica, client: Client) -> None:
    """A client whose last pattern was removed by name receives nothing until it subscribes again."""
    await subscribe(client, "event")
    assert await subscribe(client, "event", action="unsubscribe") == {"action": "unsubscribed", "events": ["event"]}
    assert await received(replica, client, *KINDS) == []
    await subscribe(client, "summary.updated")
    assert await received(replica, client, *KINDS) == ["summary_update"]


@pytest.mark.parametrize("message", [{"type": "unsubscribe"}, {"type": "unsubscribe", "data": {}}])
async def test_unsubscribe_from_all(replica: Replica, client: Client, message: dict[str, Any]) -> None:
    """Unsubscribe without a list removes all patterns, and everything is received again."""
    await subscribe(client, "event", "alert.*")
    await client.send(message)
    answer = await client.next()
    assert (answer["action"], sorted(answer["events"])) == ("unsubscribed", ["alert.*", "event"])
    assert await received(replica, client, *KINDS) == list(KINDS)


async def test_unsubscribe_of_one_who_never_subscribed(replica: Replica, client: Client) -> None:
    """A client that never subscribed has no patterns to remove, and still receives everything."""
    assert await subscribe(client, "event", action="unsubscribe") == {"action": "unsubscribed", "events": []}
    assert await received(replica, client, *KINDS) == list(KINDS)


async def test_refused_patterns_change_nothing(replica: Replica, client: Client) -> None:
    """If a list contains an invalid pattern, none of it is subscribed."""
    await subscribe(client, "event")
    assert (await subscribe(client, "scene_change", "x" * 257))["error"] == "validation_error"
    assert await received(replica, client, "scene_change", "event") == ["event"]


async def test_reply_separates_old_and_new_patterns(replica: Replica, client: Client) -> None:
    """Events before the reply match the old patterns, events after it the new ones."""
    async with replica.http() as http:
        for _ in range(20):
            await client.send({"type": "subscribe", "data": {"events": ["event"]}})
            await client.send({"type": "unsubscribe"})
            for kind in ("event", "scene_change"):
                answer = await http.post(route_of(kind), json=marked(kind, "x"))
    await client.reached(answer.json()["sequence"])
    only_events = False
    for frame in client.messages:
        if "action" in frame:
            only_events = frame["action"] == "subscribed"
        elif only_events:
            assert frame["type"] != "scene_change"
    assert len([frame for frame in client.messages if "action" in frame]) == 40


async def test_replay_is_filtered(replica: Replica, other: Replica) -> None:
    """Replayed events match the client's patterns, and so do live events afterwards."""
    numbers = await publish(replica, *KINDS, *KINDS)
    await other.delivers(numbers[-1])
    async with connected(other.websocket(since=numbers[0] - 1, events="scene.*,alert.deleted")) as client:
        verdict = await client.take(type="resync_ack")
        assert [frame["type"] for frame in client.events] == ["scene_change", "alert_deleted"] * 2
        assert all(frame["replay"] is True for frame in client.events)
        assert (verdict["replayed_count"], verdict["recovered"]) == (4, True)
        assert await received(replica, client, *KINDS) == ["scene_change", "alert_deleted"]


async def test_control_frames_ignore_filters(replica: Replica) -> None:
    """Control messages ignore patterns and have no sequence number."""
    async with connected(replica.websocket(events="nothing", since=0)) as client:
        for message in ("ping", "nonsense", {"type": "subscribe", "data": {"events": ["no.thing"]}}):
            await client.send(message)
        await client.heartbeat()
        await client.take(action="subscribed")
        await client.until(lambda: [frame for frame in client.frames if frame.get("type") == "resync_ack"] or None)
        kinds = {frame.get("type") or frame.get("action") for frame in client.frames}
        assert kinds == {"connected", "ping", "pong", "error", "subscribed", "resync_ack"}
        assert client.events == []

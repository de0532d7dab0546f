"""The envelope: the JSON that travels through Redis, written by one replica and read by others, and never trusted."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.log.envelope import Announcement, Entry, decode_announcement, decode_entry, encode_data, encode_tail
from kernel.messages.messages import (
    CameraStatusMessage,
    EventMessage,
    Message,
    SceneChangeMessage,
    ServiceStatusMessage,
    WorkerStatusMessage,
)
from kernel.observer import TraceContext

EVENT: dict[str, Any] = {
    "id": 1,
    "event_id": 2,
    "batch_id": "b",
    "camera_id": "front_door",
    "risk_score": 75,
    "risk_level": "high",
    "summary": "A person at the door",
    "reasoning": "…",
}
WORKER = {"event_type": "worker.started", "worker_name": "w", "worker_type": "detection", "timestamp": "t"}
CAMERA = {
    "event_type": "camera.offline",
    "camera_id": "c",
    "camera_name": "Front door",
    "status": "offline",
    "timestamp": "t",
}
SCENE = {"id": 1, "camera_id": "c", "detected_at": "t", "change_type": "unknown", "similarity_score": 0.5}
SERVICE = {"service": "detector", "status": "running"}
NOW = 1769860800.125


def message(kind: type[Message], data: dict[str, Any], **envelope: Any) -> Any:
    """Return a message of this type."""
    return kind(data=msgspec.convert(data, kind.__annotations__["data"]), **envelope)


def tail(of: Any, traceparent: str | None = None, tracestate: str | None = None, baggage: str | None = None) -> bytes:
    """Return what a publisher writes for a message."""
    return encode_tail(of, encode_data(of), "id-1", TraceContext(traceparent, tracestate, baggage), NOW)


def through_the_history(written: bytes) -> Entry:
    """Return the event as read from the history."""
    entry = decode_entry(42, {b"id": b"id-1", b"event": written})
    assert entry is not None
    return entry


def through_the_channel(*written: bytes) -> list[Entry]:
    """Return the event as received on the channel."""
    events = b",".join(b'{"sequence":%d%s' % (number, each) for number, each in enumerate(written, 42))
    announcement = decode_announcement(b'{"epoch":"9f86d081884c7d65","events":[%s]}' % events)
    assert announcement is not None
    assert announcement.epoch == "9f86d081884c7d65"
    return announcement.events


def test_document() -> None:
    """The payload carries sequence, id, type, trace context and data, and no field without a value."""
    plain = json.loads(b'{"sequence":42' + tail(message(SceneChangeMessage, SCENE)))
    assert plain == {"sequence": 42, "id": "id-1", "type": "scene_change", "published_at": NOW, "data": SCENE}
    full = json.loads(b'{"sequence":42' + tail(message(WorkerStatusMessage, WORKER), "00-1-2-01", "a=b", "c=d"))
    assert full.pop("data").items() >= WORKER.items()
    assert full == {
        "sequence": 42,
        "id": "id-1",
        "type": "worker_status",
        "event_type": "worker.started",
        "traceparent": "00-1-2-01",
        "tracestate": "a=b",
        "baggage": "c=d",
        "published_at": NOW,
        "timestamp": None,
    }


@pytest.mark.parametrize(
    "sent",
    [
        message(SceneChangeMessage, SCENE),
        message(
            CameraStatusMessage, {**CAMERA, "details": {"a": [], "b": [{}], "c": 1e2, "d": 2**53 + 1, "ü☃😀": "\0"}}
        ),
        message(EventMessage, {**EVENT, "id": 2**63 - 1, "summary": 'quotes " and \\ and \n and 😀 and \u2028'}),
    ],
)
def test_both_ways_read_the_same(sent: Message) -> None:
    """An event reads the same from the channel and from the history, its data byte for byte as written."""
    data = msgspec.json.encode(sent.data)
    read = through_the_history(tail(sent))
    (heard,) = through_the_channel(tail(sent))
    assert read == heard
    assert (read.sequence, read.id, bytes(read.data)) == (42, "id-1", data)
    assert (read.traceparent, read.tracestate, read.baggage, read.published_at) == (None, None, None, NOW)


def test_batch() -> None:
    """The events of one call share a payload and keep their order."""
    entries = through_the_channel(tail(message(SceneChangeMessage, SCENE)), tail(message(EventMessage, EVENT)))
    assert [(entry.sequence, entry.type) for entry in entries] == [(42, "scene_change"), (43, "event")]


@pytest.mark.parametrize(
    ("changes", "required"),
    [({}, False), ({"risk_score": 80}, True), ({"risk_score": 0, "risk_level": "critical"}, True)],
)
def test_requires_ack(changes: dict[str, Any], required: bool) -> None:
    """`requires_ack` is decided by the publishing replica and travels with the event."""
    assert through_the_history(tail(message(EventMessage, {**EVENT, **changes}))).requires_ack is required


@pytest.mark.parametrize(
    ("sent", "event_type"),
    [
        (message(CameraStatusMessage, CAMERA), "camera.offline"),
        (message(WorkerStatusMessage, WORKER), "worker.started"),
        (message(SceneChangeMessage, SCENE), None),
    ],
)
def test_event_type(sent: Message, event_type: str | None) -> None:
    """The `event_type` of the data also travels beside it, so that no reader has to decode the data."""
    assert through_the_history(tail(sent)).event_type == event_type


@pytest.mark.parametrize(
    ("sent", "timestamp"),
    [
        (message(ServiceStatusMessage, SERVICE, timestamp="2026-01-31T10:00:00Z"), "2026-01-31T10:00:00Z"),
        (message(WorkerStatusMessage, WORKER), None),
        (message(SceneChangeMessage, SCENE), msgspec.UNSET),
    ],
)
def test_timestamp(sent: Message, timestamp: str | None | msgspec.UnsetType) -> None:
    """The timestamp travels if its type has one, null included, and is absent otherwise."""
    assert through_the_history(tail(sent)).timestamp == timestamp
    assert through_the_channel(tail(sent))[0].timestamp == timestamp


def test_trace_context() -> None:
    """The producer's trace context travels in the payload."""
    entry = through_the_history(tail(message(EventMessage, EVENT), "00-aa-bb-01", "vendor=1", "user=é"))
    assert (entry.traceparent, entry.tracestate, entry.baggage) == ("00-aa-bb-01", "vendor=1", "user=é")


def test_new_epoch() -> None:
    """An announcement without events announces a new epoch."""
    assert decode_announcement(b'{"epoch":"e","events":[]}') == Announcement("e", [])


NO_SEQUENCES: list[Any] = [0, -1, "1", 1.5, True, []]


def document(**changes: Any) -> dict[str, Any]:
    """Return the only event of an announcement with some fields changed; None removes a field."""
    entry = {"sequence": 1, "id": "a", "type": "event", "data": {}} | changes
    return {name: value for name, value in entry.items() if value is not None}


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in ("sequence", "id", "type", "data")),
        *({"sequence": number} for number in NO_SEQUENCES),
        *({name: wrong} for name in ("id", "type") for wrong in ("", "x" * 129, 7)),
        {"timestamp": 7},
        {"requires_ack": "yes"},
        {"event_type": 7},
        {"traceparent": 7},
        {"tracestate": 7},
        {"baggage": 7},
    ],
)
def test_foreign_entries(changes: dict[str, Any]) -> None:
    """An event with a missing or invalid field is invalid, on the channel and in the history."""
    entry = document(**changes)
    assert decode_announcement(json.dumps({"epoch": "e", "events": [document()]}).encode()) is not None
    assert decode_announcement(json.dumps({"epoch": "e", "events": [document(), entry]}).encode()) is None
    if "sequence" not in changes:
        del entry["sequence"]
        assert decode_entry(1, {b"event": b"," + json.dumps(entry).encode()[1:]}) is None


NESTED = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"no JSON",
        b'{"epoch":"e"}',
        b'{"events":[]}',
        b'{"epoch":"","events":[]}',
        b'{"epoch":7,"events":[]}',
        b'{"epoch":"%s","events":[]}' % (b"e" * 65),
        b'{"epoch":"e","events":[]} trailing',
        b'{"epoch":"\xff","events":[]}',
        b'\xef\xbb\xbf{"epoch":"e","events":[]}',
        b'{"epoch":"e","events":[]}'.decode().encode("utf-16"),
        b'{"epoch":"e","events":[{"sequence":1,"id":"a","type":"event","data":{"x":"\xff"}}]}',
        b'{"epoch":"e","events":[{"sequence":1,"id":"a","type":"event","data":%s}]}' % NESTED,
        b'{"epoch":"e","events":[],"x":%s}' % NESTED,
        b'{"epoch":"e","events":[{"sequence":%s,"id":"a","type":"event","data":{}}]}' % (b"9" * 5000),
        b'{"epoch":"\\ud800","events":[]}',
        b'{"epoch":"e","events":[{"sequence":1,"id":"a","type":"\\ud800","data":{}}]}',
        NESTED,
    ],
)
def test_foreign_payloads(payload: bytes) -> None:
    """Any other payload on the channel is recognised as invalid and raises nothing."""
    assert decode_announcement(payload) is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"id": b"a"},
        {b"event": b""},
        {b"event": b"}"},
        {b"event": b',"id":"a","type":"event","data":{}'},
        {b"event": b',"sequence":7,"id":"a","type":"event","data":{}}'},
        {b"event": b',"id":"a","type":"event","data":{"x":"\xff"}}'},
        {b"event": b',"id":"a","type":"event","data":%s}' % NESTED},
    ],
)
def test_foreign_history(fields: dict[bytes, bytes]) -> None:
    """Any other entry of the history is recognised as invalid and raises nothing."""
    assert decode_entry(1, fields) is None


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(payload: bytes) -> None:
    """No bytes raise an error, on the channel or in the history."""
    assert decode_announcement(payload) is None
    assert decode_entry(1, {b"event": payload}) is None


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["epoch", "events", "id", "data"]), inner),
    )
)
def test_any_json(value: Any) -> None:
    """No JSON raises an error; a valid payload has an epoch and a list."""
    announcement = decode_announcement(json.dumps(value).encode())
    assert announcement is None or (
        announcement.epoch == value["epoch"] and announcement.events == value["events"] == []
    )

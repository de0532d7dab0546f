"""Messages: wire types, encoding, timestamps, `requires_ack` and `event_type`."""

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from kernel.messages.data import AlertDeletedData, EventData, SceneChangeData, ServiceStatusData
from kernel.messages.decoding import decode_message
from kernel.messages.enums import RiskLevel, ServiceStatus
from kernel.messages.messages import (
    MESSAGE_TYPES,
    AlertDeletedMessage,
    EventMessage,
    Message,
    SceneChangeMessage,
    ServiceStatusMessage,
    event_type_of,
    requires_ack,
    utc_now,
    wire_type_of,
)

WORKER = '{"event_type":"worker.Started","worker_name":"w","worker_type":"timeout","timestamp":"t"}'
CAMERA = '{"event_type":"camera.error","camera_id":"c","camera_name":"n","status":"error","timestamp":"t"}'


def event(score: int, level: str) -> EventMessage:
    """Return an event with this risk."""
    return EventMessage(
        EventData(
            id=1,
            event_id=1,
            batch_id="b",
            camera_id="c",
            risk_score=score,
            risk_level=RiskLevel(level),
            summary="s",
            reasoning="r",
        )
    )


def service(body: str) -> ServiceStatusMessage:
    """Return the service_status message decoded from this body."""
    message = decode_message("service_status", body.encode())
    assert isinstance(message, ServiceStatusMessage)
    return message


def test_wire_types() -> None:
    """There are exactly these wire types, and each struct is tagged with its own."""
    assert list(MESSAGE_TYPES) == [
        "event",
        "service_status",
        "scene_change",
        "camera_status",
        "alert_created",
        "alert_updated",
        "alert_acknowledged",
        "alert_resolved",
        "alert_dismissed",
        "alert_deleted",
        "worker_status",
        "detection.new",
        "detection.batch",
        "infrastructure_alert",
        "summary_update",
    ]
    assert wire_type_of(event(1, "low")) == "event"
    assert wire_type_of(AlertDeletedMessage(AlertDeletedData(id="a"))) == "alert_deleted"


def test_encoding() -> None:
    """A message is encoded as its type and data; without a timestamp field there is no `timestamp`."""
    message = AlertDeletedMessage(AlertDeletedData(id="a"))
    assert msgspec.json.encode(message) == b'{"type":"alert_deleted","data":{"id":"a","reason":null}}'


@pytest.mark.parametrize(
    ("score", "level", "expected"),
    [
        (79, "high", False),
        (80, "low", True),
        (100, "critical", True),
        (0, "critical", True),
        (0, "CRITICAL", True),
        (0, "low", False),
    ],
)
def test_requires_ack(score: int, level: str, expected: bool) -> None:
    """An event with a risk score of 80 or more, or a critical risk level, requires an ack."""
    assert requires_ack(event(score, level)) is expected


def test_requires_ack_of_others() -> None:
    """Messages other than events never require an ack, whatever their severity."""
    change = SceneChangeData(id=1, camera_id="c", detected_at="t", change_type="view_blocked", similarity_score=0.0)
    alert = {"id": "a", "event_id": 1, "severity": "critical", "status": "pending", "dedup_key": "k"}
    body = json.dumps(alert | {"created_at": "t", "updated_at": "t"}).encode()
    messages: list[Message] = [SceneChangeMessage(change), decode_message("alert_created", body)]
    assert [requires_ack(message) for message in messages] == [False, False]


def test_event_type() -> None:
    """Only camera_status and worker_status have an event_type."""
    assert event_type_of(decode_message("worker_status", WORKER.encode())) == "worker.Started"
    assert event_type_of(decode_message("camera_status", CAMERA.encode())) == "camera.error"
    assert event_type_of(event(90, "high")) is None


@pytest.mark.parametrize(
    "body",
    [
        '{"service":"nvr","status":"failed"}',
        '{"service":"nvr","status":"failed","timestamp":"no field of the bare form"}',
        '{"data":{"service":"nvr","status":"failed"}}',
    ],
)
def test_service_timestamp_filled(body: str) -> None:
    """An absent timestamp of a service_status envelope is set to the current UTC time, ISO 8601."""
    filled = datetime.fromisoformat(service(body).timestamp)
    assert filled.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - filled) < timedelta(minutes=1)


@pytest.mark.parametrize("timestamp", ["", "yesterday", "2026-03-14T22:41:09+01:00"])
def test_service_timestamp_passed_through(timestamp: str) -> None:
    """A timestamp that was sent with a service_status is passed through unchanged, valid or not."""
    body = json.dumps({"data": {"service": "nvr", "status": "failed"}, "timestamp": timestamp})
    assert service(body).timestamp == timestamp


def test_service_from_python() -> None:
    """A service_status built in Python has the current time, unless a timestamp is given."""
    data = ServiceStatusData(service="nvr", status=ServiceStatus.FAILED)
    assert ServiceStatusMessage(data).timestamp[:10] == utc_now()[:10]
    assert ServiceStatusMessage(data, "t").timestamp == "t"


@pytest.mark.parametrize(
    ("timestamp", "emitted"), [("", "null"), (',"timestamp":null', "null"), (',"timestamp":"t"', '"t"')]
)
def test_worker_timestamp(timestamp: str, emitted: str) -> None:
    """The timestamp of a worker_status envelope is passed through; if absent or null it is emitted as null."""
    body = f'{{"type":"worker_status","data":{WORKER}{timestamp}}}'
    assert msgspec.json.encode(decode_message("worker_status", body.encode())).endswith(
        f'}},"timestamp":{emitted}}}'.encode()
    )


def test_other_timestamps_dropped() -> None:
    """In the envelope of any other family, `timestamp` is an unknown field and dropped."""
    body = b'{"type":"alert_deleted","data":{"id":"a"},"timestamp":5}'
    assert decode_message("alert_deleted", body) == AlertDeletedMessage(AlertDeletedData(id="a"))

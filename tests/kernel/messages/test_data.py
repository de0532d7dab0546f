"""The data of each family, compared with a table of its fields."""

import json
from typing import Any, NamedTuple

import msgspec
import pytest

from kernel.errors import MessageInvalid
from kernel.messages.data import MAX_NESTING, CameraStatusData, ServiceStatusData, WorkerStatusData
from kernel.messages.decoding import decode_message
from kernel.messages.messages import MESSAGE_TYPES

REQUIRED = object()


class Kind(NamedTuple):
    """The values of a field: (value sent, value emitted) pairs, and invalid values; null is tested separately."""

    good: list[tuple[Any, Any]]
    bad: list[Any]


class Field(NamedTuple):
    """One row of the table: a field, its default and whether it may be null."""

    kind: Kind
    default: Any = REQUIRED
    nullable: bool = False


def same(*values: Any) -> list[tuple[Any, Any]]:
    """Return pairs of values that are emitted as they were sent."""
    return [(value, value) for value in values]


def enum(values: str) -> Kind:
    """Return an enum that accepts any letter case; `values` are separated by "|"."""
    names = values.split("|")
    cases = [(spelt, name) for name in names for spelt in (name, name.upper(), name.title())]
    return Kind(cases, ["", "zz", names[0] + " ", 1, True, []])


def nullable(kind: Kind) -> Field:
    """Return a field that may be null or absent, and is then emitted as null."""
    return Field(kind, None, nullable=True)


INT = Kind(same(0, 7, -3, 2**53 + 1, 2**70), ["75", 1.0, 1.5, True, [], {}])
COUNT = Kind(same(0, 1, 2**40), [-1, "1", 1.0, False])
SCORE = Kind(same(0, 75, 100), [-1, 101, 10**30, "75", 75.0, True])
FRACTION = Kind([(0, 0.0), (1, 1.0), (0.5, 0.5), (1e-9, 1e-9)], [-0.001, 1.001, 2, -1, "0.5", True, False, []])
TEXT = Kind(same("", "x", "Tür 🚪 \u0000 \u2028", "a" * 5000), [5, 1.5, True, [], {}])
IDS = Kind(same([], [1], [3, 2, 1]), [["1"], [1.0], [True], [None], {}, "1", 1])
OBJECT = Kind(
    same({}, {"a": [1, 2.5, None, True, {"b": "ü"}]}, {"big": 2**64 + 1, "tiny": 1e-300, "pi": 3.141592653589793}),
    [[], "x", 1, True],
)
BOX = Kind(
    [({"x": 0, "y": 0.25, "width": 0.5, "height": 1}, {"x": 0.0, "y": 0.25, "width": 0.5, "height": 1.0})],
    [{}, {"x": 0, "y": 0, "width": 1}, {"x": 0, "y": 0, "width": 1, "height": 1.5}, [0, 0, 1, 1], "x"],
)
SUMMARY_SENT = {
    "id": 1,
    "content": "quiet",
    "event_count": 0,
    "window_start": "a",
    "window_end": "b",
    "generated_at": "c",
}
SUMMARY = Kind(same(SUMMARY_SENT), [{}, SUMMARY_SENT | {"event_count": -1}, SUMMARY_SENT | {"id": "1"}, [], "x"])
RISK_LEVEL = enum("low|medium|high|critical")
CAMERA_STATUS = enum("online|offline|error|unknown")
CAMERA_EVENT = Kind(
    same("camera.online", "camera.offline", "camera.error", "camera.updated"),
    ["camera.Online", "CAMERA.ERROR", "zz", 1],
)

ALERT = {
    "id": Field(TEXT),
    "event_id": Field(INT),
    "rule_id": nullable(TEXT),
    "severity": Field(RISK_LEVEL),
    "status": Field(enum("pending|delivered|acknowledged|dismissed")),
    "dedup_key": Field(TEXT),
    "created_at": Field(TEXT),
    "updated_at": Field(TEXT),
}

FAMILIES: dict[str, dict[str, Field]] = {
    "event": {
        "id": Field(INT),
        "event_id": Field(INT),
        "batch_id": Field(TEXT),
        "camera_id": Field(TEXT),
        "risk_score": Field(SCORE),
        "risk_level": Field(RISK_LEVEL),
        "summary": Field(TEXT),
        "reasoning": Field(TEXT),
        "started_at": nullable(TEXT),
    },
    "service_status": {
        "service": Field(TEXT),
        "status": Field(
            enum(
                "healthy|unhealthy|running|stopped|crashed|disabled|restarting|restart_failed|restart_disabled|failed|degraded",
            )
        ),
        "message": nullable(TEXT),
    },
    "camera_status": {
        "event_type": Field(CAMERA_EVENT),
        "camera_id": Field(TEXT),
        "camera_name": Field(TEXT),
        "status": Field(CAMERA_STATUS),
        "timestamp": Field(TEXT),
        "previous_status": nullable(CAMERA_STATUS),
        "reason": nullable(TEXT),
        "details": nullable(OBJECT),
    },
    "scene_change": {
        "id": Field(INT),
        "camera_id": Field(TEXT),
        "detected_at": Field(TEXT),
        "change_type": Field(TEXT),
        "similarity_score": Field(FRACTION),
    },
    "alert_created": ALERT,
    "alert_updated": ALERT,
    "alert_acknowledged": ALERT,
    "alert_resolved": ALERT,
    "alert_dismissed": ALERT,
    "alert_deleted": {"id": Field(TEXT), "reason": nullable(TEXT)},
    "worker_status": {
        "event_type": Field(TEXT),
        "worker_name": Field(TEXT),
        "worker_type": Field(enum("detection|analysis|timeout|metrics")),
        "timestamp": Field(TEXT),
        "error": nullable(TEXT),
        "error_type": nullable(TEXT),
        "reason": nullable(TEXT),
        "previous_state": nullable(TEXT),
        "failure_count": nullable(INT),
        "items_processed": nullable(INT),
        "attempt": nullable(INT),
        "max_attempts": nullable(INT),
        "metadata": nullable(OBJECT),
    },
    "detection.new": {
        "detection_id": Field(INT),
        "batch_id": Field(TEXT),
        "camera_id": Field(TEXT),
        "label": Field(TEXT),
        "confidence": Field(FRACTION),
        "timestamp": Field(TEXT),
        "bbox": nullable(BOX),
    },
    "detection.batch": {
        "batch_id": Field(TEXT),
        "camera_id": Field(TEXT),
        "detection_ids": Field(IDS),
        "detection_count": Field(COUNT),
        "started_at": Field(TEXT),
        "closed_at": Field(TEXT),
        "close_reason": nullable(TEXT),
    },
    "infrastructure_alert": {
        "alertname": Field(TEXT),
        "status": Field(enum("firing|resolved")),
        "severity": Field(enum("info|warning|high|critical"), "info"),
        "component": Field(TEXT, "unknown"),
        "summary": Field(TEXT, ""),
        "description": Field(TEXT, ""),
        "started_at": nullable(TEXT),
        "fingerprint": Field(TEXT),
        "receiver": Field(TEXT, "default"),
    },
    "summary_update": {"hourly": nullable(SUMMARY), "daily": nullable(SUMMARY)},
}

FIELDS = [(wire_type, name) for wire_type, fields in FAMILIES.items() for name in fields]


def minimal(wire_type: str) -> dict[str, Any]:
    """Return the smallest valid data of a family."""
    return {name: f.kind.good[0][0] for name, f in FAMILIES[wire_type].items() if f.default is REQUIRED}


def emitted(wire_type: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the data that clients receive if `data` is sent."""
    message = decode_message(wire_type, json.dumps({"type": wire_type, "data": data}).encode())
    content: dict[str, Any] = json.loads(msgspec.json.encode(message))["data"]
    return content


def fields_at_fault(wire_type: str, data: dict[str, Any]) -> list[str]:
    """Return the fields that the error names."""
    with pytest.raises(MessageInvalid) as caught:
        emitted(wire_type, data)
    return [error.field for error in caught.value.errors]


def test_families() -> None:
    """The table has exactly the existing message types."""
    assert set(MESSAGE_TYPES) == set(FAMILIES)


@pytest.mark.parametrize("wire_type", FAMILIES)
def test_defaults(wire_type: str) -> None:
    """Absent optional fields are emitted as their defaults, and unknown fields are dropped."""
    fields = FAMILIES[wire_type]
    got = emitted(wire_type, minimal(wire_type) | {"unknown": {"a": 1}, "data": 5})
    assert list(got) == list(fields)
    for name, field in fields.items():
        assert got[name] == (field.kind.good[0][1] if field.default is REQUIRED else field.default)


@pytest.mark.parametrize(("wire_type", "name"), FIELDS)
def test_field(wire_type: str, name: str) -> None:
    """Each field accepts exactly the values of the table, and the error of an invalid value names only that field."""
    field = FAMILIES[wire_type][name]
    data = minimal(wire_type)
    for sent, expected in field.kind.good:
        got = emitted(wire_type, data | {name: sent})[name]
        assert got == expected
        assert type(got) is type(expected)
    for sent in field.kind.bad:
        (fault,) = {
            at.removeprefix("data.").split(".")[0].split("[")[0]
            for at in fields_at_fault(wire_type, data | {name: sent})
        }
        assert fault == name, sent
    if field.nullable:
        assert emitted(wire_type, data | {name: None})[name] is None
    else:
        assert fields_at_fault(wire_type, data | {name: None}) == [f"data.{name}"]
    if field.default is REQUIRED:
        del data[name]
        assert fields_at_fault(wire_type, data) == [f"data.{name}"]


def test_service_as_name() -> None:
    """`service` is also accepted as `name` but emitted as `service` only; if both are sent, `service` is used."""
    status = {"status": "failed", "message": None}
    assert emitted("service_status", {"name": "nvr", **status}) == {"service": "nvr", **status}
    assert emitted("service_status", {"name": "a", "service": "", **status}) == {"service": "", **status}
    assert fields_at_fault("service_status", status) == ["data.service"]
    assert fields_at_fault("service_status", {"name": 5, **status}) == ["data.name"]
    with pytest.raises(ValueError, match="service: is required"):
        ServiceStatusData(status="failed")  # type: ignore[arg-type]


@pytest.mark.parametrize(("wire_type", "name"), [("camera_status", "details"), ("worker_status", "metadata")])
def test_nesting(wire_type: str, name: str) -> None:
    """`details` and `metadata` may be nested MAX_NESTING levels deep, and no deeper."""

    def nested(depth: int) -> dict[str, Any]:
        value: Any = {}
        for level in range(depth - 1):
            value = {"a": value, "b": 1} if level % 2 or level == depth - 2 else [1, value, "x"]
        return value  # type: ignore[no-any-return]

    data = minimal(wire_type)
    assert emitted(wire_type, data | {name: nested(MAX_NESTING)})[name] == nested(MAX_NESTING)
    assert fields_at_fault(wire_type, data | {name: nested(MAX_NESTING + 1)}) == [f"data.{name}"]
    struct: Any = {"camera_status": CameraStatusData, "worker_status": WorkerStatusData}[wire_type]
    with pytest.raises(ValueError, match=f"{name}: must not be nested deeper"):
        struct(**data, **{name: nested(MAX_NESTING + 1)})


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" * 5000])
def test_numbers_out_of_range(number: str) -> None:
    """A number in an object that cannot be passed through unchanged is refused."""
    body = json.dumps(minimal("camera_status") | {"details": {"a": ["NUMBER"]}}).replace('"NUMBER"', number)
    with pytest.raises(MessageInvalid) as caught:
        decode_message("camera_status", body.encode())
    assert [error.field for error in caught.value.errors] == ["details"]


def test_schema() -> None:
    """The JSON schema of the structs has ranges, enums, defaults and descriptions (for OpenAPI)."""
    _, schemas = msgspec.json.schema_components(MESSAGE_TYPES.values())
    event = schemas["EventData"]["properties"]
    assert (event["risk_score"]["minimum"], event["risk_score"]["maximum"]) == (0, 100)
    assert event["risk_score"]["description"]
    assert schemas["RiskLevel"]["enum"] == ["critical", "high", "low", "medium"]
    assert schemas["InfrastructureAlertData"]["properties"]["component"]["default"] == "unknown"
    assert all(schema.get("description") for name, schema in schemas.items())

"""Validation of messages that were built in Python: the same rules as for their JSON."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kernel.errors import MessageInvalid
from kernel.messages.data import (
    BoundingBox,
    CameraStatusData,
    DetectionNewData,
    EventData,
    ServiceStatusData,
    WorkerStatusData,
)
from kernel.messages.decoding import MAX_BATCH, decode_message
from kernel.messages.enums import RiskLevel
from kernel.messages.messages import (
    CameraStatusMessage,
    DetectionNewMessage,
    EventMessage,
    ServiceStatusMessage,
    WorkerStatusMessage,
)
from kernel.messages.validation import check_batch, check_message
from tests.kernel.messages.test_decoding import CAMERA, ENVELOPE, EVENT, encoded

GOOD = decode_message("event", encoded(EVENT))
WORKER: Any = {"event_type": "worker.started", "worker_name": "w", "worker_type": "metrics", "timestamp": "t"}
NOT_JSON = "cannot be written as JSON"


def test_good() -> None:
    """A valid message is returned as decoded from its JSON, with enums in lower case."""
    event: Any = EVENT | {"risk_level": "HIGH"}
    message: Any = check_message(EventMessage(data=EventData(**event)))
    assert message == GOOD
    assert message.data.risk_level is RiskLevel.HIGH
    service = ServiceStatusMessage(data=ServiceStatusData(name="s", status="failed"), timestamp="t")
    assert check_batch([message, service]) == [message, service]


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        (EventMessage(data=None), "data", "must be an object, not null"),
        (EventMessage(data=EventData(**EVENT | {"summary": 5})), "data.summary", "must be a string, not 5"),
        (EventMessage(data=EventData(**EVENT | {"summary": "\ud800"})), "data.summary", NOT_JSON),
        (EventMessage(data=EventData(**EVENT | {"id": object()})), "data.id", NOT_JSON),
        (
            ServiceStatusMessage(data=ServiceStatusData(service="s", status="failed", message="\udfff")),
            "data.message",
            NOT_JSON,
        ),
        (
            ServiceStatusMessage(data=ServiceStatusData(service="s", status="failed"), timestamp=None),
            "timestamp",
            "must be a string, not null",
        ),
        (
            DetectionNewMessage(
                data=DetectionNewData(
                    detection_id=1,
                    batch_id="b",
                    camera_id="c",
                    label="l",
                    confidence=float("nan"),
                    timestamp="t",
                    bbox=BoundingBox(x=2, y=0, width=1j, height=1),
                )
            ),
            "data.bbox.width",
            NOT_JSON,
        ),
    ],
)
def test_bad(message: Any, field: str, words: str) -> None:
    """An invalid message raises an error with the path of the field; in a batch, the path starts with the index."""
    with pytest.raises(MessageInvalid) as caught:
        check_message(message)
    [error] = caught.value.errors
    assert (error.field, error.message[: len(words)]) == (field, words)
    with pytest.raises(MessageInvalid) as caught:
        check_batch([GOOD, message])
    assert caught.value.errors[0].field == f"[1].{field}"


def test_endless() -> None:
    """An object that contains itself is refused."""
    details: dict[str, Any] = {}
    message = CameraStatusMessage(data=CameraStatusData(**CAMERA | {"details": details}))
    details["again"] = details
    with pytest.raises(MessageInvalid, match="nested"):
        check_message(message)


@pytest.mark.parametrize("item", [EVENT, ENVELOPE, EventData(**EVENT), None, "event"])
def test_not_a_message(item: Any) -> None:
    """An item that is not a message is refused with its index and an example of a message."""
    with pytest.raises(MessageInvalid) as caught:
        check_batch([GOOD, item])
    [error] = caught.value.errors
    assert (error.field, "EventMessage" in error.message) == ("[1]", True)


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
def test_size(size: int) -> None:
    """A batch must have 1 to 1,000 messages."""
    with pytest.raises(MessageInvalid, match="1 to 1,000 messages"):
        check_batch([GOOD] * size)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "put",
    [
        lambda number: number,
        lambda number: [1.5, ({"now": number},)],
        lambda number: {number},
        lambda number: BoundingBox(x=number, y=0, width=1, height=1),
    ],
    ids=["direct", "nested", "set", "struct"],
)
def test_not_finite(number: float, put: Callable[[float], Any]) -> None:
    """NaN and infinity in a free object are refused, because JSON has neither and null would be sent instead."""
    content: dict[str, Any] = {"load": put(number)}
    camera = CameraStatusMessage(data=CameraStatusData(**CAMERA | {"details": content}))
    worker = WorkerStatusMessage(data=WorkerStatusData(**WORKER | {"metadata": content}))
    for message, name in ((camera, "details"), (worker, "metadata")):
        with pytest.raises(MessageInvalid) as caught:
            check_message(message)
        [error] = caught.value.errors
        assert (error.field, error.message) == (f"data.{name}", "must not have numbers that are NaN or infinite")
        with pytest.raises(MessageInvalid) as caught:
            check_batch([GOOD, message])
        assert [error.field for error in caught.value.errors] == [f"[1].data.{name}"]


def test_null_in_a_free_object() -> None:
    """A null that the caller wrote stays, and so does the text of NaN."""
    content: dict[str, Any] = {"a": None, "b": [None, 1e308], "c": "NaN", "d": msgspec.Raw(b"[2]")}
    message: Any = check_message(CameraStatusMessage(data=CameraStatusData(**CAMERA | {"details": content})))
    assert bytes(message.data.details) == b'{"a":null,"b":[null,1e308],"c":"NaN","d":[2]}'

"""Validation of messages that were built in Python: the same rules as for their JSON."""

from typing import Any

import pytest

from kernel.errors import MessageInvalid
from kernel.messages.data import BoundingBox, CameraStatusData, DetectionNewData, EventData, ServiceStatusData
from kernel.messages.decoding import MAX_BATCH, decode_message
from kernel.messages.enums import RiskLevel
from kernel.messages.messages import CameraStatusMessage, DetectionNewMessage, EventMessage, ServiceStatusMessage
from kernel.messages.validation import check_batch, check_message
from tests.kernel.messages.test_decoding import CAMERA, ENVELOPE, EVENT, encoded

GOOD = decode_message("event", encoded(EVENT))
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

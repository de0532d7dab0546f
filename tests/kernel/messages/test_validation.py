"""Messages that were built in Python are held to the rules of section 3, as their JSON would be."""

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
NO_JSON = "cannot be written as JSON"


def test_good() -> None:
    """Section 12: a good message comes back as it would from JSON, an enum of any letter case in lower case."""
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
        (EventMessage(data=EventData(**EVENT | {"summary": "\ud800"})), "data.summary", NO_JSON),
        (EventMessage(data=EventData(**EVENT | {"id": object()})), "data.id", NO_JSON),
        (
            ServiceStatusMessage(data=ServiceStatusData(service="s", status="failed", message="\udfff")),
            "data.message",
            NO_JSON,
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
            NO_JSON,
        ),
    ],
)
def test_bad(message: Any, field: str, words: str) -> None:
    """Section 12: a bad one is refused with the path of its field; in a batch that starts with the item."""
    with pytest.raises(MessageInvalid) as caught:
        check_message(message)
    [error] = caught.value.errors
    assert (error.field, error.message[: len(words)]) == (field, words)
    with pytest.raises(MessageInvalid) as caught:
        check_batch([GOOD, message])
    assert caught.value.errors[0].field == f"[1].{field}"


def test_endless() -> None:
    """Section 12: an object that contains itself is refused too."""
    details: dict[str, Any] = {}
    message = CameraStatusMessage(data=CameraStatusData(**CAMERA | {"details": details}))
    details["again"] = details
    with pytest.raises(MessageInvalid, match="nested"):
        check_message(message)


@pytest.mark.parametrize("item", [EVENT, ENVELOPE, EventData(**EVENT), None, "event"])
def test_no_message(item: Any) -> None:
    """Section 12, broadcast_batch: what is no message is named by its place, and so is what one looks like."""
    with pytest.raises(MessageInvalid) as caught:
        check_batch([GOOD, item])
    [error] = caught.value.errors
    assert (error.field, "EventMessage" in error.message) == ("[1]", True)


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
def test_size(size: int) -> None:
    """Section 2, batch: it has 1 to 1,000 messages."""
    with pytest.raises(MessageInvalid, match="1 to 1,000 messages"):
        check_batch([GOOD] * size)

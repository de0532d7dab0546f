"""The names of each message, which patterns match."""

import pytest

from kernel.messages.messages import MESSAGE_TYPES
from kernel.messages.names import names_of

TABLE = {
    "event": ["event.created"],
    "service_status": ["service.status_changed"],
    "camera_status": ["camera.status_changed"],
    "scene_change": ["scene_change.detected", "scene.changed"],
    "alert_created": ["alert.created"],
    "alert_updated": ["alert.updated"],
    "alert_acknowledged": ["alert.acknowledged"],
    "alert_resolved": ["alert.resolved"],
    "alert_dismissed": ["alert.dismissed"],
    "alert_deleted": ["alert.deleted"],
    "worker_status": ["worker.status_changed"],
    "detection.new": [],
    "detection.batch": [],
    "infrastructure_alert": ["infrastructure.alert"],
    "summary_update": ["summary.updated"],
}


@pytest.mark.parametrize("wire_type", MESSAGE_TYPES)
def test_names(wire_type: str) -> None:
    """The names of a message are its wire type and the further names of the table."""
    assert names_of(wire_type, None) == (wire_type, *TABLE[wire_type])


@pytest.mark.parametrize("wire_type", ["camera_status", "worker_status"])
def test_event_type(wire_type: str) -> None:
    """The `event_type` of the data is a name too, in lower case like patterns."""
    assert names_of(wire_type, "Worker.Started") == (wire_type, *TABLE[wire_type], "worker.started")


def test_unknown_wire_type() -> None:
    """A wire type that this version does not know, from a newer replica, has no further names."""
    assert names_of("Door.Opened", None) == ("door.opened",)

"""The messages that can be published: the data of a family with its wire type.

A message is encoded as `{"type": …, "data": {…}}`, with `timestamp` if its struct has one.

Not here: the data and its rules (data.py, enums.py), the decoding of bodies (decoding.py), the names that patterns
match (names.py), and control messages such as ping, which are not events (control.py).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TypeAlias, get_args

from msgspec import Struct, field

from kernel.messages.data import (
    AlertData,
    AlertDeletedData,
    BoundingBox,
    CameraStatusData,
    DetectionBatchData,
    DetectionNewData,
    EventData,
    InfrastructureAlertData,
    SceneChangeData,
    ServiceStatusData,
    Summary,
    SummaryUpdateData,
    WorkerStatusData,
)
from kernel.messages.enums import RiskLevel

__all__ = [
    "MESSAGE_TYPES",
    "AlertAcknowledgedMessage",
    "AlertCreatedMessage",
    "AlertData",
    "AlertDeletedData",
    "AlertDeletedMessage",
    "AlertDismissedMessage",
    "AlertResolvedMessage",
    "AlertUpdatedMessage",
    "BoundingBox",
    "CameraStatusData",
    "CameraStatusMessage",
    "DetectionBatchData",
    "DetectionBatchMessage",
    "DetectionNewData",
    "DetectionNewMessage",
    "EventData",
    "EventMessage",
    "InfrastructureAlertData",
    "InfrastructureAlertMessage",
    "Message",
    "SceneChangeData",
    "SceneChangeMessage",
    "ServiceStatusData",
    "ServiceStatusMessage",
    "Summary",
    "SummaryUpdateData",
    "SummaryUpdateMessage",
    "WorkerStatusData",
    "WorkerStatusMessage",
    "event_type_of",
    "requires_ack",
    "utc_now",
    "wire_type_of",
]

ACK_FROM_RISK_SCORE = 80


def utc_now() -> str:
    """Return the current time in UTC as ISO 8601, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class EventMessage(Struct, frozen=True, gc=False, tag="event"):
    """A security event was created."""

    data: EventData


class ServiceStatusMessage(Struct, frozen=True, gc=False, tag="service_status"):
    """A service changed its status; `timestamp` defaults to the current UTC time."""

    data: ServiceStatusData
    timestamp: str = field(default_factory=utc_now)


class SceneChangeMessage(Struct, frozen=True, gc=False, tag="scene_change"):
    """The view of a camera changed."""

    data: SceneChangeData


class CameraStatusMessage(Struct, frozen=True, gc=False, tag="camera_status"):
    """A camera changed its status."""

    data: CameraStatusData


class AlertCreatedMessage(Struct, frozen=True, gc=False, tag="alert_created"):
    """An alert was raised."""

    data: AlertData


class AlertUpdatedMessage(Struct, frozen=True, gc=False, tag="alert_updated"):
    """An alert changed."""

    data: AlertData


class AlertAcknowledgedMessage(Struct, frozen=True, gc=False, tag="alert_acknowledged"):
    """An alert was acknowledged."""

    data: AlertData


class AlertResolvedMessage(Struct, frozen=True, gc=False, tag="alert_resolved"):
    """The cause of an alert is resolved."""

    data: AlertData


class AlertDismissedMessage(Struct, frozen=True, gc=False, tag="alert_dismissed"):
    """An alert was dismissed."""

    data: AlertData


class AlertDeletedMessage(Struct, frozen=True, gc=False, tag="alert_deleted"):
    """An alert was deleted."""

    data: AlertDeletedData


class WorkerStatusMessage(Struct, frozen=True, gc=False, tag="worker_status"):
    """A worker of the pipeline changed its status."""

    data: WorkerStatusData
    timestamp: str | None = None


class DetectionNewMessage(Struct, frozen=True, gc=False, tag="detection.new"):
    """One object was detected in one picture."""

    data: DetectionNewData


class DetectionBatchMessage(Struct, frozen=True, gc=False, tag="detection.batch"):
    """A batch of detections was closed."""

    data: DetectionBatchData


class InfrastructureAlertMessage(Struct, frozen=True, gc=False, tag="infrastructure_alert"):
    """An infrastructure alert fires or is resolved."""

    data: InfrastructureAlertData


class SummaryUpdateMessage(Struct, frozen=True, gc=False, tag="summary_update"):
    """New summaries are available."""

    data: SummaryUpdateData


Message: TypeAlias = (
    EventMessage
    | ServiceStatusMessage
    | SceneChangeMessage
    | CameraStatusMessage
    | AlertCreatedMessage
    | AlertUpdatedMessage
    | AlertAcknowledgedMessage
    | AlertResolvedMessage
    | AlertDismissedMessage
    | AlertDeletedMessage
    | WorkerStatusMessage
    | DetectionNewMessage
    | DetectionBatchMessage
    | InfrastructureAlertMessage
    | SummaryUpdateMessage
)

MESSAGE_TYPES: Mapping[str, type[Message]] = MappingProxyType(
    {message.__struct_config__.tag: message for message in get_args(Message)}
)
"""The message struct of each wire type."""

_WIRE_TYPES = {message: wire_type for wire_type, message in MESSAGE_TYPES.items()}


def wire_type_of(message: Message) -> str:
    """Return the wire type of the message: its `type` in JSON."""
    return _WIRE_TYPES[type(message)]


def requires_ack(message: Message) -> bool:
    """Return True if clients are asked for an ack: an event with a risk score from 80 on or a critical risk level."""
    return type(message) is EventMessage and (
        message.data.risk_score >= ACK_FROM_RISK_SCORE or message.data.risk_level == RiskLevel.CRITICAL
    )


def event_type_of(message: Message) -> str | None:
    """Return the `event_type` in the data of camera_status and worker_status, which patterns match too; else None."""
    if type(message) is CameraStatusMessage or type(message) is WorkerStatusMessage:
        return message.data.event_type
    return None

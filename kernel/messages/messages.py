"""Every event that can be published, as a message: a family's data with the wire type around it.

A message is encoded as `{"type": …, "data": {…}}`, with `timestamp` where its struct has one.
Not here: the data and its rules (data.py, enums.py), reading a body and saying what is wrong with it (decoding.py),
by which names patterns find a message (names.py), control frames such as ping, which are no events (control.py).
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
    """Return the current time as ISO 8601, in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class EventMessage(Struct, frozen=True, gc=False, tag="event"):
    """A security event was created."""

    data: EventData


class ServiceStatusMessage(Struct, frozen=True, gc=False, tag="service_status"):
    """A service changed its status; `timestamp` is the current UTC time unless given."""

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
    """Someone has seen an alert."""

    data: AlertData


class AlertResolvedMessage(Struct, frozen=True, gc=False, tag="alert_resolved"):
    """What an alert was about is over."""

    data: AlertData


class AlertDismissedMessage(Struct, frozen=True, gc=False, tag="alert_dismissed"):
    """An alert was put aside."""

    data: AlertData


class AlertDeletedMessage(Struct, frozen=True, gc=False, tag="alert_deleted"):
    """An alert is gone."""

    data: AlertDeletedData


class WorkerStatusMessage(Struct, frozen=True, gc=False, tag="worker_status"):
    """A worker of the pipeline changed its status."""

    data: WorkerStatusData
    timestamp: str | None = None


class DetectionNewMessage(Struct, frozen=True, gc=False, tag="detection.new"):
    """One thing was detected in one picture."""

    data: DetectionNewData


class DetectionBatchMessage(Struct, frozen=True, gc=False, tag="detection.batch"):
    """A batch of detections was closed."""

    data: DetectionBatchData


class InfrastructureAlertMessage(Struct, frozen=True, gc=False, tag="infrastructure_alert"):
    """An infrastructure alert fires or is resolved."""

    data: InfrastructureAlertData


class SummaryUpdateMessage(Struct, frozen=True, gc=False, tag="summary_update"):
    """There are new summaries."""

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
"""The struct of each wire type."""

_WIRE_TYPES = {message: wire_type for wire_type, message in MESSAGE_TYPES.items()}


def wire_type_of(message: Message) -> str:
    """Return the `type` that the message has on the wire."""
    return _WIRE_TYPES[type(message)]


def requires_ack(message: Message) -> bool:
    """Tell whether clients are asked to acknowledge it: an event of high enough risk."""
    return type(message) is EventMessage and (
        message.data.risk_score >= ACK_FROM_RISK_SCORE or message.data.risk_level == RiskLevel.CRITICAL
    )


def event_type_of(message: Message) -> str | None:
    """Return the `event_type` that the data of camera_status and worker_status carries; patterns match it too."""
    if type(message) is CameraStatusMessage or type(message) is WorkerStatusMessage:
        return message.data.event_type
    return None

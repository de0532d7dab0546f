"""The data of each message family, as msgspec structs: types, ranges, enums, defaults, and descriptions for OpenAPI.

Timestamps are strings and passed through unchanged; unknown fields are dropped. All structs have `gc=False`: decoded
JSON has no cycles, and garbage collections would slow batches down.

Not here: the message around the data (messages.py), and the decoding of bodies (decoding.py).
"""

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

from msgspec import UNSET, Meta, Raw, Struct
from msgspec.structs import force_setattr

from kernel.messages.enums import (
    AlertStatus,
    CameraEventType,
    CameraStatus,
    InfrastructureSeverity,
    InfrastructureStatus,
    RiskLevel,
    ServiceStatus,
    WorkerType,
)
from kernel.messages.free_objects import MAX_NESTING, NESTED_TOO_DEEPLY, nested_too_deeply

__all__ = [
    "AlertData",
    "AlertDeletedData",
    "BoundingBox",
    "CameraStatusData",
    "DetectionBatchData",
    "DetectionNewData",
    "EventData",
    "FreeObject",
    "InfrastructureAlertData",
    "SceneChangeData",
    "ServiceStatusData",
    "Summary",
    "SummaryUpdateData",
    "WorkerStatusData",
]

Timestamp = Annotated[str, Meta(description="A time, ISO 8601 by convention; passed through unchanged.")]
Started = Annotated[str, Meta(description="The start, ISO 8601 by convention; passed through unchanged.")]
CameraId = Annotated[str, Meta(description="The camera's id.", examples=["front_door"])]
BatchId = Annotated[str, Meta(description="The batch of detections to which this belongs.")]
EventId = Annotated[int, Meta(description="The id of the related security event.")]
Reason = Annotated[str, Meta(description="A human-readable reason.")]
RiskScore = Annotated[int, Meta(ge=0, le=100, description="The risk from 0 (none) to 100; 80 or more requests an ack.")]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]

# An object of any content: a dict, or in a decoded message its JSON as it came (free_objects.py).
if TYPE_CHECKING:
    FreeObject: TypeAlias = dict[str, Any] | Raw
else:  # what a schema shows
    FreeObject = Annotated[dict[str, Any], Meta(description=f"Any content, nested at most {MAX_NESTING} levels deep.")]


class EventData(Struct, frozen=True, kw_only=True, gc=False):
    """A security event: the result of the analysis of a batch of detections."""

    id: int
    event_id: EventId
    batch_id: BatchId
    camera_id: CameraId
    risk_score: RiskScore
    risk_level: RiskLevel
    summary: Annotated[str, Meta(description="One sentence about what was detected.")]
    reasoning: Annotated[str, Meta(description="The reasons for the risk score.")]
    started_at: Started | None = None


class ServiceStatusData(Struct, frozen=True, kw_only=True, gc=False):
    """A service changed its status; `service` or `name` is required."""

    service: Annotated[str, Meta(description="The service's name; required, here or as `name`.")] = cast(str, UNSET)
    name: Annotated[str, Meta(description="Used as `service` if that is absent; never emitted.")] = cast(str, UNSET)
    status: ServiceStatus
    message: Annotated[str, Meta(description="A human-readable explanation.")] | None = None

    def __post_init__(self) -> None:
        """Move `name` into `service` if only `name` was given."""
        if cast(Any, self.service) is UNSET:
            if cast(Any, self.name) is UNSET:
                raise ValueError("service: is required: a string")
            force_setattr(self, "service", self.name)
        force_setattr(self, "name", UNSET)


class SceneChangeData(Struct, frozen=True, kw_only=True, gc=False):
    """The view of a camera changed; it may have been blocked, turned or tampered with."""

    id: int
    camera_id: CameraId
    detected_at: Timestamp
    change_type: Annotated[str, Meta(description="view_blocked, angle_changed, view_tampered, unknown by convention.")]
    similarity_score: Annotated[
        Fraction, Meta(description="The similarity of the view to the known one; 1 if unchanged.")
    ]


class CameraStatusData(Struct, frozen=True, kw_only=True, gc=False):
    """A camera went online or offline, failed or was reconfigured."""

    event_type: CameraEventType
    camera_id: CameraId
    camera_name: Annotated[str, Meta(description="The display name of the camera.")]
    status: CameraStatus
    timestamp: Timestamp
    previous_status: CameraStatus | None = None
    reason: Reason | None = None
    details: FreeObject | None = None

    def __post_init__(self) -> None:
        """Enforce the limit of nesting."""
        _check_nesting("details", self.details)


class AlertData(Struct, frozen=True, kw_only=True, gc=False):
    """The current state of an alert that a rule raised for an event."""

    id: str
    event_id: EventId
    rule_id: Annotated[str, Meta(description="The rule that raised it.")] | None = None
    severity: RiskLevel
    status: AlertStatus
    dedup_key: Annotated[str, Meta(description="Alerts with the same key have the same cause.")]
    created_at: Timestamp
    updated_at: Timestamp


class AlertDeletedData(Struct, frozen=True, kw_only=True, gc=False):
    """An alert was deleted."""

    id: str
    reason: Reason | None = None


class WorkerStatusData(Struct, frozen=True, kw_only=True, gc=False):
    """A worker of the pipeline started, stopped, failed or recovered."""

    event_type: Annotated[
        str,
        Meta(
            description="worker.started, worker.stopped, worker.health_check_failed, worker.restarting, "
            "worker.recovered, worker.error by convention."
        ),
    ]
    worker_name: str
    worker_type: WorkerType
    timestamp: Timestamp
    error: Annotated[str, Meta(description="The error message.")] | None = None
    error_type: Annotated[str, Meta(description="The class of the error.")] | None = None
    reason: Reason | None = None
    previous_state: str | None = None
    failure_count: int | None = None
    items_processed: int | None = None
    attempt: Annotated[int, Meta(description="The number of this restart attempt.")] | None = None
    max_attempts: int | None = None
    metadata: FreeObject | None = None

    def __post_init__(self) -> None:
        """Enforce the limit of nesting."""
        _check_nesting("metadata", self.metadata)


class BoundingBox(Struct, frozen=True, kw_only=True, gc=False):
    """The area of a detection in the picture, in fractions of the picture's width and height."""

    x: Fraction
    y: Fraction
    width: Fraction
    height: Fraction


class DetectionNewData(Struct, frozen=True, kw_only=True, gc=False):
    """One object was detected in one picture."""

    detection_id: int
    batch_id: BatchId
    camera_id: CameraId
    label: Annotated[str, Meta(description="The kind of the object.", examples=["person"])]
    confidence: Annotated[Fraction, Meta(description="The confidence of the detector; 1 is certain.")]
    timestamp: Timestamp
    bbox: BoundingBox | None = None


class DetectionBatchData(Struct, frozen=True, kw_only=True, gc=False):
    """A batch of detections was closed and is passed to the analysis."""

    batch_id: BatchId
    camera_id: CameraId
    detection_ids: list[int]
    detection_count: Count
    started_at: Started
    closed_at: Timestamp
    close_reason: Annotated[str, Meta(description="timeout, idle, max_size by convention.")] | None = None


class InfrastructureAlertData(Struct, frozen=True, kw_only=True, gc=False):
    """An alert about the infrastructure, in the terms of Prometheus's Alertmanager."""

    alertname: str
    status: InfrastructureStatus
    severity: InfrastructureSeverity = InfrastructureSeverity.INFO
    component: Annotated[str, Meta(description="The affected component.")] = "unknown"
    summary: str = ""
    description: str = ""
    started_at: Started | None = None
    fingerprint: Annotated[str, Meta(description="Identifies the alert; equal in its firing and its resolved message.")]
    receiver: str = "default"


class Summary(Struct, frozen=True, kw_only=True, gc=False):
    """A human-readable summary of the events in a window of time."""

    id: int
    content: str
    event_count: Count
    window_start: Timestamp
    window_end: Timestamp
    generated_at: Timestamp


class SummaryUpdateData(Struct, frozen=True, kw_only=True, gc=False):
    """The newest summaries; null if there is none."""

    hourly: Summary | None = None
    daily: Summary | None = None


def _check_nesting(name: str, value: FreeObject | None) -> None:
    if isinstance(value, dict) and nested_too_deeply(value):
        raise ValueError(f"{name}: {NESTED_TOO_DEEPLY}")

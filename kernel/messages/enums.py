"""The enums of the messages: the allowed values of a status, a severity or a type.

Not here: the fields that use them (data.py).
"""

from enum import StrEnum
from typing import Self, cast

__all__ = [
    "AlertStatus",
    "AnyCase",
    "CameraEventType",
    "CameraStatus",
    "InfrastructureSeverity",
    "InfrastructureStatus",
    "RiskLevel",
    "ServiceStatus",
    "WorkerType",
]


class AnyCase(StrEnum):
    """An enum that accepts any letter case; its values, which are emitted, are in lower case."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return cast("Self | None", cls._value2member_map_.get(str(value).lower()))


class RiskLevel(AnyCase):
    """The severity of an event or an alert."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class ServiceStatus(AnyCase):
    """The status of a service."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    RUNNING = "running"
    STOPPED = "stopped"
    CRASHED = "crashed"
    DISABLED = "disabled"
    RESTARTING = "restarting"
    RESTART_FAILED = "restart_failed"
    RESTART_DISABLED = "restart_disabled"
    FAILED = "failed"
    DEGRADED = "degraded"


class CameraEventType(StrEnum):
    """The kind of a camera event; the only enum that is accepted in its exact case only."""

    ONLINE = "camera.online"
    OFFLINE = "camera.offline"
    ERROR = "camera.error"
    UPDATED = "camera.updated"


class CameraStatus(AnyCase):
    """The state of a camera."""

    ONLINE = "online"
    OFFLINE = "offline"
    ERROR = "error"
    UNKNOWN = "unknown"


class AlertStatus(AnyCase):
    """The status of an alert."""

    PENDING = "pending"
    DELIVERED = "delivered"
    ACKNOWLEDGED = "acknowledged"
    DISMISSED = "dismissed"


class WorkerType(AnyCase):
    """The task of a worker of the pipeline."""

    DETECTION = "detection"
    ANALYSIS = "analysis"
    TIMEOUT = "timeout"
    METRICS = "metrics"


class InfrastructureStatus(AnyCase):
    """The status of an infrastructure alert."""

    FIRING = "firing"
    RESOLVED = "resolved"


class InfrastructureSeverity(AnyCase):
    """The severity of an infrastructure alert."""

    INFO = "info"
    WARNING = "warning"
    HIGH = "high"
    CRITICAL = "critical"

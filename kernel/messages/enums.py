"""The enums of the messages: what a status, a severity or a type may be.

Not here: which field has which (data.py).
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
    """An enum that is read in any letter case; its values, and so what is emitted, are in lower case."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return cast("Self | None", cls._value2member_map_.get(str(value).lower()))


class RiskLevel(AnyCase):
    """How serious an event or an alert is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class ServiceStatus(AnyCase):
    """How a service is doing."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    RUNNING = "running"
    STOPPED = "stopped"
    CRASHED = "crashed"
    DISABLED = "disabled"
    RESTARTING = "restarting"
    RESTART_FAILED = "restart_failed"
    FAILED = "failed"
    DEGRADED = "degraded"


class CameraEventType(StrEnum):
    """What happened to a camera; the one enum that is read in its exact case only."""

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
    """Where an alert is in its life."""

    PENDING = "pending"
    DELIVERED = "delivered"
    ACKNOWLEDGED = "acknowledged"
    DISMISSED = "dismissed"


class WorkerType(AnyCase):
    """What a worker of the pipeline works on."""

    DETECTION = "detection"
    ANALYSIS = "analysis"
    TIMEOUT = "timeout"
    METRICS = "metrics"


class InfrastructureStatus(AnyCase):
    """Whether an infrastructure alert goes on."""

    FIRING = "firing"
    RESOLVED = "resolved"


class InfrastructureSeverity(AnyCase):
    """How serious an infrastructure alert is."""

    INFO = "info"
    WARNING = "warning"
    HIGH = "high"
    CRITICAL = "critical"

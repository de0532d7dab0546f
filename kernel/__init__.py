"""The microkernel: numbers events once in Redis, and delivers those of every replica to its own clients.

`EventBroadcaster` is the whole of it, `RedisTransport` its link to the other replicas; neither knows the web. This file
lists the names that the rooms outside may use.
"""

from kernel.broadcaster import BroadcasterConfig, EventBroadcaster, get_broadcaster
from kernel.circuit import CircuitState, CircuitStatus, Transition
from kernel.client import Client, Resume, Sink
from kernel.control import Control, Error, Shutdown
from kernel.decoding import MAX_BATCH, decode_batch, decode_message
from kernel.enums import (
    AlertStatus,
    CameraEventType,
    CameraStatus,
    InfrastructureSeverity,
    InfrastructureStatus,
    RiskLevel,
    ServiceStatus,
    WorkerType,
)
from kernel.errors import (
    GOING_AWAY,
    IDLE_TIMEOUT,
    INTERNAL_ERROR,
    NORMAL,
    TRY_AGAIN_LATER,
    UNAUTHORIZED,
    BroadcasterError,
    BroadcastFailed,
    CircuitOpen,
    CloseReason,
    FieldError,
    MessageInvalid,
    NotStarted,
    TransportError,
    TransportUnavailable,
    WriteRefused,
)
from kernel.frames import WINDOW_BITS, AsgiEncoding, Encoding, Joined, WireEncoding
from kernel.messages import (
    MESSAGE_TYPES,
    AlertData,
    AlertDeletedData,
    BoundingBox,
    CameraStatusData,
    DetectionBatchData,
    DetectionNewData,
    EventData,
    InfrastructureAlertData,
    Message,
    SceneChangeData,
    ServiceStatusData,
    Summary,
    SummaryUpdateData,
    WorkerStatusData,
    utc_now,
    wire_type_of,
)
from kernel.observer import Observer
from kernel.publishing import PublishOptions, Receipt, ReplayedReceipt
from kernel.redis import RedisTransport
from kernel.retry import BroadcastRetryMetrics, broadcast_with_retry
from kernel.session import Refused, patterns_from, sequence_from
from kernel.subscriptions import EVERYTHING, Patterns
from kernel.transport import Transport

__all__ = [
    "EVERYTHING",
    "GOING_AWAY",
    "IDLE_TIMEOUT",
    "INTERNAL_ERROR",
    "MAX_BATCH",
    "MESSAGE_TYPES",
    "NORMAL",
    "TRY_AGAIN_LATER",
    "UNAUTHORIZED",
    "WINDOW_BITS",
    "AlertData",
    "AlertDeletedData",
    "AlertStatus",
    "AsgiEncoding",
    "BoundingBox",
    "BroadcastFailed",
    "BroadcastRetryMetrics",
    "BroadcasterConfig",
    "BroadcasterError",
    "CameraEventType",
    "CameraStatus",
    "CameraStatusData",
    "CircuitOpen",
    "CircuitState",
    "CircuitStatus",
    "Client",
    "CloseReason",
    "Control",
    "DetectionBatchData",
    "DetectionNewData",
    "Encoding",
    "Error",
    "EventBroadcaster",
    "EventData",
    "FieldError",
    "InfrastructureAlertData",
    "InfrastructureSeverity",
    "InfrastructureStatus",
    "Joined",
    "Message",
    "MessageInvalid",
    "NotStarted",
    "Observer",
    "Patterns",
    "PublishOptions",
    "Receipt",
    "RedisTransport",
    "Refused",
    "ReplayedReceipt",
    "Resume",
    "RiskLevel",
    "SceneChangeData",
    "ServiceStatus",
    "ServiceStatusData",
    "Shutdown",
    "Sink",
    "Summary",
    "SummaryUpdateData",
    "Transition",
    "Transport",
    "TransportError",
    "TransportUnavailable",
    "WireEncoding",
    "WorkerStatusData",
    "WorkerType",
    "WriteRefused",
    "broadcast_with_retry",
    "decode_batch",
    "decode_message",
    "get_broadcaster",
    "patterns_from",
    "sequence_from",
    "utc_now",
    "wire_type_of",
]

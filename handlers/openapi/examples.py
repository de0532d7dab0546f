"""Example messages: a realistic envelope for each wire type, shown by OpenAPI and used by the tests."""

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["EXAMPLES"]

_ALERT: Final = {
    "id": "alert-5021",
    "event_id": 1187,
    "rule_id": "rule-night-entrance",
    "severity": "high",
    "status": "pending",
    "dedup_key": "front_door:rule-night-entrance",
    "created_at": "2026-03-14T22:41:09Z",
    "updated_at": "2026-03-14T22:41:09Z",
}


def _alert(status: str, updated_at: str) -> dict[str, Any]:
    return {**_ALERT, "status": status, "updated_at": updated_at}


_DATA: Final[dict[str, dict[str, Any]]] = {
    "event": {
        "id": 1187,
        "event_id": 1187,
        "batch_id": "batch-7f3a",
        "camera_id": "front_door",
        "risk_score": 82,
        "risk_level": "high",
        "summary": "A person has been standing at the front door for two minutes",
        "reasoning": "Nobody is expected at this hour, and the person keeps looking back at the street",
        "started_at": "2026-03-14T22:38:51Z",
    },
    "service_status": {"service": "object-detector", "status": "restarting", "message": "No answer to 3 health checks"},
    "scene_change": {
        "id": 64,
        "camera_id": "backyard",
        "detected_at": "2026-03-14T22:40:02Z",
        "change_type": "view_blocked",
        "similarity_score": 0.21,
    },
    "camera_status": {
        "event_type": "camera.offline",
        "camera_id": "driveway",
        "camera_name": "Driveway",
        "status": "offline",
        "timestamp": "2026-03-14T22:40:30Z",
        "previous_status": "online",
        "reason": "No picture for 30 seconds",
        "details": {"address": "192.168.10.24", "failed_polls": 6},
    },
    "alert_created": _alert("pending", "2026-03-14T22:41:09Z"),
    "alert_updated": _alert("delivered", "2026-03-14T22:41:12Z"),
    "alert_acknowledged": _alert("acknowledged", "2026-03-14T22:43:55Z"),
    "alert_resolved": _alert("acknowledged", "2026-03-14T22:52:40Z"),
    "alert_dismissed": _alert("dismissed", "2026-03-14T22:53:18Z"),
    "alert_deleted": {"id": "alert-5021", "reason": "Older than 30 days"},
    "worker_status": {
        "event_type": "worker.health_check_failed",
        "worker_name": "detection-2",
        "worker_type": "detection",
        "timestamp": "2026-03-14T22:39:44Z",
        "error": "No heartbeat for 15 seconds",
        "error_type": "TimeoutError",
        "reason": None,
        "previous_state": "running",
        "failure_count": 2,
        "items_processed": 48213,
        "attempt": 1,
        "max_attempts": 5,
        "metadata": {"queue_depth": 17, "gpu": "cuda:0"},
    },
    "detection.new": {
        "detection_id": 90412,
        "batch_id": "batch-7f3a",
        "camera_id": "front_door",
        "label": "person",
        "confidence": 0.94,
        "timestamp": "2026-03-14T22:38:51Z",
        "bbox": {"x": 0.41, "y": 0.18, "width": 0.16, "height": 0.62},
    },
    "detection.batch": {
        "batch_id": "batch-7f3a",
        "camera_id": "front_door",
        "detection_ids": [90412, 90413, 90417],
        "detection_count": 3,
        "started_at": "2026-03-14T22:38:51Z",
        "closed_at": "2026-03-14T22:40:21Z",
        "close_reason": "timeout",
    },
    "infrastructure_alert": {
        "alertname": "DiskAlmostFull",
        "status": "firing",
        "severity": "warning",
        "component": "recordings",
        "summary": "The recordings' disk is 91 % full",
        "description": "At the present rate it is full in about 19 hours",
        "started_at": "2026-03-14T21:05:00Z",
        "fingerprint": "b1946ac92492d234",
        "receiver": "event-broadcaster",
    },
    "summary_update": {
        "hourly": {
            "id": 311,
            "content": "One high-risk event at the front door; the driveway camera went offline",
            "event_count": 4,
            "window_start": "2026-03-14T22:00:00Z",
            "window_end": "2026-03-14T23:00:00Z",
            "generated_at": "2026-03-14T23:00:06Z",
        },
        "daily": None,
    },
}

_TIMESTAMPS: Final = {"service_status": "2026-03-14T22:39:47Z", "worker_status": "2026-03-14T22:39:44Z"}

EXAMPLES: Final[Mapping[str, dict[str, Any]]] = {
    wire_type: {"type": wire_type, "data": data}
    | ({"timestamp": _TIMESTAMPS[wire_type]} if wire_type in _TIMESTAMPS else {})
    for wire_type, data in _DATA.items()
}
"""The example envelope of each wire type, in the order of the routes."""

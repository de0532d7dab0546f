"""The names of each message: a pattern matches a message if it matches one of its names.

Not here: patterns (kernel/clients/patterns.py).
"""

__all__ = ["names_of"]

_FURTHER_NAMES: dict[str, tuple[str, ...]] = {
    "event": ("event.created",),
    "service_status": ("service.status_changed",),
    "camera_status": ("camera.status_changed",),
    "scene_change": ("scene_change.detected", "scene.changed"),
    "alert_created": ("alert.created",),
    "alert_updated": ("alert.updated",),
    "alert_acknowledged": ("alert.acknowledged",),
    "alert_resolved": ("alert.resolved",),
    "alert_dismissed": ("alert.dismissed",),
    "alert_deleted": ("alert.deleted",),
    "worker_status": ("worker.status_changed",),
    "infrastructure_alert": ("infrastructure.alert",),
    "summary_update": ("summary.updated",),
}


_NAMES = {wire_type: (wire_type, *further) for wire_type, further in _FURTHER_NAMES.items()}


def names_of(wire_type: str, event_type: str | None = None) -> tuple[str, ...]:
    """Return all names of a message in lower case, its wire type first.

    `event_type` is that of the data, or None if the family has none. A wire type that this version does not know, from
    a newer replica, has no further names.
    """
    names = _NAMES.get(wire_type) or (wire_type.lower(),)
    return names if event_type is None else (*names, event_type.lower())

"""The publish routes: one for each broadcast method of the kernel.

What all of them share (reading a request, both forms of a body, the answer) is in `publishing`.
"""

from typing import Final, TypeAlias

from litestar import Router, post

from handlers.auth import encoded
from handlers.routes.publishing import publishes
from handlers.settings import Settings
from kernel import (
    AlertAcknowledgedMessage,
    AlertCreatedMessage,
    AlertDeletedMessage,
    AlertDismissedMessage,
    AlertResolvedMessage,
    AlertUpdatedMessage,
    CameraStatusMessage,
    DetectionBatchMessage,
    DetectionNewMessage,
    EventBroadcaster,
    EventMessage,
    InfrastructureAlertMessage,
    Message,
    PublishOptions,
    Receipt,
    SceneChangeMessage,
    ServiceStatusMessage,
    SummaryUpdateMessage,
    WorkerStatusMessage,
)
from kernel.messages import wire_type_of

__all__ = ["broadcast_router"]

AlertMessage: TypeAlias = (
    AlertCreatedMessage
    | AlertUpdatedMessage
    | AlertAcknowledgedMessage
    | AlertResolvedMessage
    | AlertDismissedMessage
    | AlertDeletedMessage
)

_ALERT_KINDS: Final = ("created", "updated", "acknowledged", "resolved", "dismissed", "deleted")


@post("/event", tags=["events"])
@publishes
async def broadcast_event(broadcaster: EventBroadcaster, message: EventMessage, options: PublishOptions) -> Receipt:
    """Publish `event`."""
    return await broadcaster.broadcast_event(message.data, options=options)


@post("/service-status", tags=["status"])
@publishes
async def broadcast_service_status(
    broadcaster: EventBroadcaster, message: ServiceStatusMessage, options: PublishOptions
) -> Receipt:
    """Publish `service_status`."""
    return await broadcaster.broadcast_service_status(message.data, timestamp=message.timestamp, options=options)


@post("/scene-change", tags=["cameras"])
@publishes
async def broadcast_scene_change(
    broadcaster: EventBroadcaster, message: SceneChangeMessage, options: PublishOptions
) -> Receipt:
    """Publish `scene_change`."""
    return await broadcaster.broadcast_scene_change(message.data, options=options)


@post("/camera-status", tags=["cameras"])
@publishes
async def broadcast_camera_status(
    broadcaster: EventBroadcaster, message: CameraStatusMessage, options: PublishOptions
) -> Receipt:
    """Publish `camera_status`."""
    return await broadcaster.broadcast_camera_status(message.data, options=options)


# One path for each kind, not a path parameter: an unknown kind is then an unknown path, refused before credentials are
# asked for, and each kind is described with the body that it takes.
@post(
    [f"/alert/{kind}" for kind in ("created", "updated", "acknowledged", "resolved", "dismissed", "deleted")],
    tags=["alerts"],
)
@publishes
async def broadcast_alert(broadcaster: EventBroadcaster, message: AlertMessage, options: PublishOptions) -> Receipt:
    """Publish `alert_created` to `alert_deleted`."""
    return await broadcaster.broadcast_alert(message.data, wire_type_of(message), options=options)


@post("/worker-status", tags=["status"])
@publishes
async def broadcast_worker_status(
    broadcaster: EventBroadcaster, message: WorkerStatusMessage, options: PublishOptions
) -> Receipt:
    """Publish `worker_status`."""
    return await broadcaster.broadcast_worker_status(message.data, timestamp=message.timestamp, options=options)


@post("/detection/new", tags=["detections"])
@publishes
async def broadcast_detection_new(
    broadcaster: EventBroadcaster, message: DetectionNewMessage, options: PublishOptions
) -> Receipt:
    """Publish `detection.new`."""
    return await broadcaster.broadcast_detection_new(message.data, options=options)


@post("/detection/batch", tags=["detections"])
@publishes
async def broadcast_detection_batch(
    broadcaster: EventBroadcaster, message: DetectionBatchMessage, options: PublishOptions
) -> Receipt:
    """Publish `detection.batch`."""
    return await broadcaster.broadcast_detection_batch(message.data, options=options)


@post("/infrastructure-alert", tags=["status"])
@publishes
async def broadcast_infrastructure_alert(
    broadcaster: EventBroadcaster, message: InfrastructureAlertMessage, options: PublishOptions
) -> Receipt:
    """Publish `infrastructure_alert`."""
    return await broadcaster.broadcast_infrastructure_alert(message.data, options=options)


@post("/summary-update", tags=["events"])
@publishes
async def broadcast_summary_update(
    broadcaster: EventBroadcaster, message: SummaryUpdateMessage, options: PublishOptions
) -> Receipt:
    """Publish `summary_update`."""
    return await broadcaster.broadcast_summary_update(message.data.hourly, message.data.daily, options=options)


@post("/batch", tags=["batch"])
@publishes
async def broadcast_batch(
    broadcaster: EventBroadcaster, messages: list[Message], options: PublishOptions
) -> list[Receipt]:
    """Publish several messages at once, in their order."""
    return await broadcaster.broadcast_batch(messages, options=options)


_ROUTES: Final = (
    broadcast_event,
    broadcast_service_status,
    broadcast_scene_change,
    broadcast_camera_status,
    broadcast_alert,
    broadcast_worker_status,
    broadcast_detection_new,
    broadcast_detection_batch,
    broadcast_infrastructure_alert,
    broadcast_summary_update,
    broadcast_batch,
)


def broadcast_router(settings: Settings) -> Router:
    """Gather the publish routes under /broadcast, with the keys and the size of body that the settings allow."""
    return Router(
        "/broadcast",
        route_handlers=_ROUTES,
        opt={"api_keys": encoded(settings.api_keys)},
        request_max_body_size=settings.http_max_body_bytes,
    )

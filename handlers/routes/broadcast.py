"""The publish routes: one function for each broadcast method of the kernel.

What they share (reading a request, decoding its body, the answer) is in `publishing`.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from litestar import Router
from litestar.types import Middleware

from handlers.auth import encoded
from handlers.routes.dependencies import Broadcaster
from handlers.routes.publish_request import API_KEYS, BODY_BUDGET, MAX_BODY_BYTES, BodyBudget
from handlers.routes.publishing import publish_route, publish_routes
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

__all__ = ["PUBLISH_ROUTES", "broadcast_router"]

MAX_BODIES_BYTES: Final = 64 * 1024 * 1024
"""How many bytes of bodies all publishes in flight may hold together."""

AlertMessage: TypeAlias = (
    AlertCreatedMessage
    | AlertUpdatedMessage
    | AlertAcknowledgedMessage
    | AlertResolvedMessage
    | AlertDismissedMessage
    | AlertDeletedMessage
)


@publish_route("/broadcast/event", tags=["events"])
async def broadcast_event(broadcaster: Broadcaster, message: EventMessage, options: PublishOptions) -> Receipt:
    """Publish a security event."""
    return await broadcaster.broadcast_event(message.data, options=options)


@publish_route("/broadcast/service-status", tags=["status"])
async def broadcast_service_status(
    broadcaster: Broadcaster, message: ServiceStatusMessage, options: PublishOptions
) -> Receipt:
    """Publish the status of a service."""
    return await broadcaster.broadcast_service_status(message.data, timestamp=message.timestamp, options=options)


@publish_route("/broadcast/scene-change", tags=["cameras"])
async def broadcast_scene_change(
    broadcaster: Broadcaster, message: SceneChangeMessage, options: PublishOptions
) -> Receipt:
    """Publish a scene change."""
    return await broadcaster.broadcast_scene_change(message.data, options=options)


@publish_route("/broadcast/camera-status", tags=["cameras"])
async def broadcast_camera_status(
    broadcaster: Broadcaster, message: CameraStatusMessage, options: PublishOptions
) -> Receipt:
    """Publish the status of a camera."""
    return await broadcaster.broadcast_camera_status(message.data, options=options)


# One path for each step instead of a path parameter: an unknown step is an unknown path (a 404 even without a key), and
# OpenAPI describes each path with its own body.
@publish_routes(
    {
        "/broadcast/alert/created": AlertCreatedMessage,
        "/broadcast/alert/updated": AlertUpdatedMessage,
        "/broadcast/alert/acknowledged": AlertAcknowledgedMessage,
        "/broadcast/alert/resolved": AlertResolvedMessage,
        "/broadcast/alert/dismissed": AlertDismissedMessage,
        "/broadcast/alert/deleted": AlertDeletedMessage,
    },
    tags=["alerts"],
)
async def broadcast_alert(broadcaster: Broadcaster, message: AlertMessage, options: PublishOptions) -> Receipt:
    """Publish a step in the life of an alert."""
    return await broadcaster.broadcast_alert(message.data, wire_type_of(message), options=options)


@publish_route("/broadcast/worker-status", tags=["status"])
async def broadcast_worker_status(
    broadcaster: Broadcaster, message: WorkerStatusMessage, options: PublishOptions
) -> Receipt:
    """Publish the status of a worker."""
    return await broadcaster.broadcast_worker_status(message.data, timestamp=message.timestamp, options=options)


@publish_route("/broadcast/detection/new", tags=["detections"])
async def broadcast_detection_new(
    broadcaster: Broadcaster, message: DetectionNewMessage, options: PublishOptions
) -> Receipt:
    """Publish a detection."""
    return await broadcaster.broadcast_detection_new(message.data, options=options)


@publish_route("/broadcast/detection/batch", tags=["detections"])
async def broadcast_detection_batch(
    broadcaster: Broadcaster, message: DetectionBatchMessage, options: PublishOptions
) -> Receipt:
    """Publish a closed batch of detections."""
    return await broadcaster.broadcast_detection_batch(message.data, options=options)


@publish_route("/broadcast/infrastructure-alert", tags=["status"])
async def broadcast_infrastructure_alert(
    broadcaster: Broadcaster, message: InfrastructureAlertMessage, options: PublishOptions
) -> Receipt:
    """Publish an alert of the infrastructure monitoring."""
    return await broadcaster.broadcast_infrastructure_alert(message.data, options=options)


@publish_route("/broadcast/summary-update", tags=["events"])
async def broadcast_summary_update(
    broadcaster: Broadcaster, message: SummaryUpdateMessage, options: PublishOptions
) -> Receipt:
    """Publish the hourly and daily summaries."""
    return await broadcaster.broadcast_summary_update(message.data.hourly, message.data.daily, options=options)


@publish_route("/broadcast/batch", tags=["batch"])
async def broadcast_batch(broadcaster: Broadcaster, messages: list[Message], options: PublishOptions) -> list[Receipt]:
    """Publish several messages of any type in one call, in the given order, all or none."""
    return await broadcaster.broadcast_batch(messages, options=options)


PUBLISH_ROUTES: Final = (
    broadcast_event,
    broadcast_service_status,
    broadcast_scene_change,
    broadcast_camera_status,
    *broadcast_alert,
    broadcast_worker_status,
    broadcast_detection_new,
    broadcast_detection_batch,
    broadcast_infrastructure_alert,
    broadcast_summary_update,
    broadcast_batch,
)
"""Every publish route, in the order of the documentation."""


def broadcast_router(settings: Settings, middleware: Sequence[Middleware] = ()) -> Router:
    """Return the publish routes, with the API keys and the largest body that the settings allow."""
    return Router(
        "/",
        route_handlers=PUBLISH_ROUTES,
        middleware=middleware,
        opt={
            API_KEYS: encoded(settings.api_keys),
            MAX_BODY_BYTES: settings.http_max_body_bytes,
            BODY_BUDGET: BodyBudget(MAX_BODIES_BYTES),
        },
    )

"""The publish routes: read a body, hand its message to the kernel, answer with the receipt.

Each route and its wire type stand together in one short function. This is every publisher's hot path, hence four
habits: handlers take the raw request and no injected arguments, the broadcaster comes straight from the application's
state, the answer is ready bytes (each saves a third to a half of what an empty route costs), and what was decoded goes
to the kernel's `publish`: the `broadcast_*` methods would check it once more.
Not here: what a request must carry (incoming.py), what a body must look like (kernel), how an error is answered
(problems.py), how the routes are described (description.py).
"""

from typing import Any, Final

import msgspec
from litestar import Request, Router, post
from litestar.types import ASGIApp, Receive, Scope, Send

from handlers.auth import encoded
from handlers.routes.request import read_publish
from handlers.settings import Settings
from kernel import (
    MESSAGE_TYPES,
    ReplayedReceipt,
    decode_batch,
    decode_message,
    get_broadcaster,
)

__all__ = ["broadcast_router"]

_encode: Final = msgspec.json.Encoder().encode

_ALERTS: Final = tuple(wire_type for wire_type in MESSAGE_TYPES if wire_type.startswith("alert_"))


class _Accepted:
    """The 202 as ready bytes."""

    __slots__ = ("_body", "_headers")

    def __init__(self, body: bytes, *, replayed: bool, closing: bool) -> None:
        self._body = body
        self._headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if replayed:
            self._headers.append((b"idempotent-replayed", b"true"))
        if closing:
            self._headers.append((b"connection", b"close"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 202, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


async def _publish(request: Request[Any, Any, Any], wire_type: str) -> ASGIApp:
    """Publish the one message of the request."""
    body, options = await read_publish(request)
    message = decode_message(wire_type, body)
    broadcaster = get_broadcaster(request.app.state)
    [receipt] = await broadcaster.publish((message,), options)
    return _Accepted(_encode(receipt), replayed=isinstance(receipt, ReplayedReceipt), closing=broadcaster.draining)


@post("/event", tags=["events"])
async def broadcast_event(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `event`."""
    return await _publish(request, "event")


@post("/service-status", tags=["status"])
async def broadcast_service_status(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `service_status`."""
    return await _publish(request, "service_status")


@post("/scene-change", tags=["cameras"])
async def broadcast_scene_change(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `scene_change`."""
    return await _publish(request, "scene_change")


@post("/camera-status", tags=["cameras"])
async def broadcast_camera_status(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `camera_status`."""
    return await _publish(request, "camera_status")


# One path per kind, not a parameter: an unknown kind is then an unknown path, refused before any key is asked for, and
# each kind is described with the body that it takes.
@post([f"/alert/{wire_type.removeprefix('alert_')}" for wire_type in _ALERTS], tags=["alerts"])
async def broadcast_alert(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `alert_created` … `alert_deleted`."""
    wire_type = f"alert_{request.scope['path'].rpartition('/')[2]}"
    return await _publish(request, wire_type)


@post("/worker-status", tags=["status"])
async def broadcast_worker_status(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `worker_status`."""
    return await _publish(request, "worker_status")


@post("/detection/new", tags=["detections"])
async def broadcast_detection_new(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `detection.new`."""
    return await _publish(request, "detection.new")


@post("/detection/batch", tags=["detections"])
async def broadcast_detection_batch(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `detection.batch`."""
    return await _publish(request, "detection.batch")


@post("/infrastructure-alert", tags=["status"])
async def broadcast_infrastructure_alert(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `infrastructure_alert`."""
    return await _publish(request, "infrastructure_alert")


@post("/summary-update", tags=["events"])
async def broadcast_summary_update(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish `summary_update`."""
    return await _publish(request, "summary_update")


@post("/batch", tags=["batch"])
async def broadcast_batch(request: Request[Any, Any, Any]) -> ASGIApp:
    """Publish several messages at once, in their order."""
    body, options = await read_publish(request)
    messages = decode_batch(body)
    broadcaster = get_broadcaster(request.app.state)
    receipts = await broadcaster.publish(messages, options)
    return _Accepted(
        _encode({"receipts": receipts}),
        replayed=isinstance(receipts[0], ReplayedReceipt),
        closing=broadcaster.draining,
    )


def broadcast_router(settings: Settings) -> Router:
    """Gather the publish routes under /broadcast, with the keys and the size of body that the settings allow."""
    return Router(
        "/broadcast",
        route_handlers=[
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
        ],
        opt={"api_keys": encoded(settings.api_keys)},
        request_max_body_size=settings.http_max_body_bytes,
    )

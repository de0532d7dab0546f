"""The HTTP application under test: the publish, health and schema routes with a fake broadcaster."""

from typing import Any

from litestar import Litestar
from litestar.datastructures import State

from handlers.openapi.page import openapi_config
from handlers.problems import exception_handlers
from handlers.routes.broadcast import broadcast_router
from handlers.routes.dependencies import BROADCASTER, broadcaster_provider
from handlers.routes.health import health_routes
from handlers.settings import Settings
from tests.fakes import FakeBroadcaster

ROUTES = {
    "event": "/broadcast/event",
    "service_status": "/broadcast/service-status",
    "scene_change": "/broadcast/scene-change",
    "camera_status": "/broadcast/camera-status",
    "alert_created": "/broadcast/alert/created",
    "alert_updated": "/broadcast/alert/updated",
    "alert_acknowledged": "/broadcast/alert/acknowledged",
    "alert_resolved": "/broadcast/alert/resolved",
    "alert_dismissed": "/broadcast/alert/dismissed",
    "alert_deleted": "/broadcast/alert/deleted",
    "worker_status": "/broadcast/worker-status",
    "detection.new": "/broadcast/detection/new",
    "detection.batch": "/broadcast/detection/batch",
    "infrastructure_alert": "/broadcast/infrastructure-alert",
    "summary_update": "/broadcast/summary-update",
}
"""The path of each message type."""


def http_app(broadcaster: FakeBroadcaster, **settings: Any) -> Litestar:
    """Return the application for a broadcaster, with the given settings."""
    chosen = Settings(**settings)
    state = State({"broadcaster": broadcaster})
    return Litestar(
        route_handlers=[broadcast_router(chosen), *health_routes],
        exception_handlers=exception_handlers,
        openapi_config=openapi_config(chosen, version="1.2.3"),
        dependencies={BROADCASTER: broadcaster_provider(state)},
        state=state,
        logging_config=None,
    )

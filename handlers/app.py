"""The composition root: builds the Litestar application from the settings."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from litestar import Litestar
from litestar.datastructures import State
from litestar.types import ControllerRouterHandler

from handlers.cors import CorsMiddleware
from handlers.openapi.page import openapi_config
from handlers.origins import OriginRules, only_loopback
from handlers.port_router import PortRouter
from handlers.problems import exception_handlers
from handlers.routes.broadcast import broadcast_router
from handlers.routes.browser_files import browser_routes
from handlers.routes.dependencies import BROADCASTER, broadcaster_provider
from handlers.routes.event_stream import event_stream_route
from handlers.routes.health import health_routes
from handlers.routes.metrics import metrics_route
from handlers.routes.poll import poll_route
from handlers.routes.root import root, root_route
from handlers.routes.websocket import websocket_route
from handlers.settings import Settings
from kernel import BroadcasterConfig, EventBroadcaster, Observer, RedisTransport
from telemetry import Exposition, Telemetry

__all__ = ["create_app"]


def create_app(settings: Settings, redis_url: str) -> Litestar:
    """Return the application for these settings and that Redis.

    The broadcaster and the telemetry start and stop with the application's lifespan. With `internal_port`, a second
    application has the routes of metrics and health. It answers the requests that arrive on that port, and no others.
    """
    release = version("event-broadcaster")
    telemetry = Telemetry(os.environ, channel=settings.redis_event_channel, redis_url=redis_url, version=release)
    broadcaster = _broadcaster(settings, redis_url, telemetry.observers)
    state = State({"broadcaster": broadcaster})

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        # If Redis cannot be reached, the service starts degraded, and recovers once Redis is back.
        await broadcaster.start(without_redis=True)
        telemetry.start(broadcaster)
        try:
            yield
        finally:
            await broadcaster.stop()
            await telemetry.stop()

    litestar = partial(
        Litestar,
        dependencies={BROADCASTER: broadcaster_provider(state)},
        exception_handlers=exception_handlers,
        state=state,
        logging_config=None,
    )
    public: list[ControllerRouterHandler] = [
        root_route(settings),
        broadcast_router(settings, telemetry.middleware),
        websocket_route(settings),
        event_stream_route(settings),
        poll_route(settings),
        *browser_routes(settings),
    ]
    operation: list[ControllerRouterHandler] = [*health_routes, metrics_route(Exposition(broadcaster))]
    app = litestar(
        route_handlers=public if settings.internal_port is not None else [*public, *operation],
        openapi_config=openapi_config(settings, version=release),
        after_exception=telemetry.after_exception,
        lifespan=[lifespan],
    )
    if settings.internal_port is not None:
        internal = litestar(route_handlers=[root, *operation], openapi_config=None)
        app.asgi_handler = PortRouter(app.asgi_handler, port=settings.internal_port, internal=internal)
    rules = OriginRules(
        settings.allowed_origins, credentials=settings.asks_for_credentials, loopback=only_loopback(settings.host)
    )
    # Litestar's own middleware does not run for paths that do not exist, and runs once for each route.
    app.asgi_handler = CorsMiddleware(app.asgi_handler, rules)
    return app


def _broadcaster(settings: Settings, redis_url: str, observers: Sequence[Observer]) -> EventBroadcaster:
    config = BroadcasterConfig(
        message_buffer_size=settings.message_buffer_size,
        event_max_bytes=settings.event_max_bytes,
        max_retries=settings.broadcast_max_retries,
        base_delay=settings.broadcast_base_delay_seconds,
        max_delay=settings.broadcast_max_delay_seconds,
        circuit_failure_threshold=settings.circuit_failure_threshold,
        circuit_recovery_seconds=settings.circuit_recovery_seconds,
        position_check_seconds=settings.position_check_seconds,
        supervision_interval_seconds=settings.supervision_interval_seconds,
        chunk_bytes=max(1, settings.websocket_send_buffer_bytes // 4),
        number_field=settings.websocket_number_field,
        most_ahead=max(1, min(BroadcasterConfig().most_ahead, settings.history_size // 2)),
    )
    transport = RedisTransport(
        redis_url,
        channel=settings.redis_event_channel,
        history_size=settings.history_size,
        deadline=settings.position_check_seconds,
        retry_lifetime=config.retry_lifetime,
        observers=observers,
    )
    return EventBroadcaster(transport, config, observers)

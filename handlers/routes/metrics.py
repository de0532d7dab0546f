"""`GET /metrics`: the text that Prometheus scrapes. No key is asked for. What is measured is telemetry's."""

from collections.abc import Callable
from typing import Any, Final

from litestar import HttpMethod, Request, Response, route
from litestar.handlers import HTTPRouteHandler

__all__ = ["metrics_route"]

_METHODS: Final = (HttpMethod.GET, HttpMethod.HEAD)


def metrics_route(expose: Callable[[str], tuple[bytes, str]]) -> HTTPRouteHandler:
    """The route; `expose` answers an `Accept` header with the text and its content type."""

    @route(
        "/metrics",
        http_method=_METHODS,
        summary="What has this replica done?",
        description="Prometheus text, or OpenMetrics for those who accept it.",
        tags=["operation"],
        sync_to_thread=False,
    )
    def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Every number, read now."""
        text, content_type = expose(request.headers.get("accept", ""))
        # as a header: to a text media type Litestar adds a charset, and this has one
        return Response(text, headers={"content-type": content_type, "cache-control": "no-store"})

    return metrics

"""`GET /metrics`: the metrics of this replica for Prometheus. No API key is needed."""

from collections.abc import Callable
from typing import Any, Final

from litestar import HttpMethod, Request, Response, route
from litestar.handlers import HTTPRouteHandler

__all__ = ["metrics_route"]

_LONGEST_ACCEPT: Final = 1024
"""The longest `Accept` header that is read; no client needs more, and reading takes time for each media type in it."""

_METHODS: Final = (HttpMethod.GET, HttpMethod.HEAD)


def metrics_route(expose: Callable[[str], tuple[bytes, str]]) -> HTTPRouteHandler:
    """Return the route; `expose` takes an `Accept` header and returns the text and its content type."""

    @route(
        "/metrics",
        http_method=_METHODS,
        summary="Metrics",
        description="Prometheus text format, or OpenMetrics with exemplars if the client prefers it.",
        tags=["operation"],
        sync_to_thread=False,
    )
    def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return the present value of every metric."""
        accept = request.headers.get("accept", "")
        text, content_type = expose(accept if len(accept) <= _LONGEST_ACCEPT else "")
        # A header instead of `media_type`, to which Litestar would add a second charset.
        return Response(text, headers={"content-type": content_type, "cache-control": "no-store"})

    return metrics

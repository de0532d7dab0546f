"""The path `/`: it leads to the console, if there is one. `OPTIONS /`, HAProxy's default check, is answered 204."""

from typing import Any, Final

from litestar import HttpMethod, Response, route
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler

from handlers.settings import Settings

__all__ = ["root", "root_route"]


_METHODS: Final = (HttpMethod.GET, HttpMethod.HEAD)


@route("/", http_method=_METHODS, include_in_schema=False, sync_to_thread=False)
def root() -> None:
    """Answer 404; the route exists because Litestar answers OPTIONS for the paths that it knows."""
    raise NotFoundException


def root_route(settings: Settings) -> HTTPRouteHandler:
    """Return the route `/` for these settings."""
    if settings.console == "off":
        return root

    @route("/", http_method=_METHODS, include_in_schema=False, sync_to_thread=False)
    def to_console() -> Response[Any]:
        return Response(b"", status_code=307, headers={"location": f"{settings.root_path}/console"})

    return to_console

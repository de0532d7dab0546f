"""The files for browsers: `/client.js` and its types.

Pages of any origin may import the client: it contains no secrets, and the routes for events decide what it may read.
Browsers keep the files, and ask each time whether they are the newest.
"""

import hashlib
from importlib.resources import files
from typing import Any, Final

from litestar import HttpMethod, Request, Response, route
from litestar.handlers import HTTPRouteHandler

__all__ = ["browser_routes"]

_METHODS: Final = (HttpMethod.GET, HttpMethod.HEAD)
_CLIENT: Final = {
    "client.js": ("text/javascript; charset=utf-8", {"x-typescript-types": "./client.d.ts"}),
    "client.d.ts": ("application/typescript; charset=utf-8", {}),
}


def browser_routes() -> list[HTTPRouteHandler]:
    """Return a route for each file."""
    return [
        _file_route(name, media_type, {"access-control-allow-origin": "*", **headers})
        for name, (media_type, headers) in _CLIENT.items()
    ]


def _file_route(name: str, media_type: str, headers: dict[str, str]) -> HTTPRouteHandler:
    content = files("handlers").joinpath("browser", name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {
        **headers,
        "content-type": media_type,
        "cache-control": "no-cache",
        "etag": tag,
        "x-content-type-options": "nosniff",
    }

    @route(f"/{name}", http_method=_METHODS, include_in_schema=False, sync_to_thread=False)
    def file(request: Request[Any, Any, Any]) -> Response[bytes]:
        known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(b"", status_code=304, headers=headers)
        return Response(content, headers=headers)

    return file

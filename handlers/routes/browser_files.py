"""The files for browsers: `/client.js` and its types, and the page `/console` with what it needs.

Pages of any origin may import the client: it contains no secrets, and the routes for events decide what it may read.
The console has no inline script or style, loads nothing from other hosts, and must not be framed. Browsers keep the
files, and ask each time whether they are the newest.
"""

import hashlib
from importlib.resources import files
from typing import Any, Final

import msgspec
from litestar import HttpMethod, Request, Response, route
from litestar.handlers import HTTPRouteHandler

from handlers.settings import Settings

__all__ = ["browser_routes"]

_METHODS: Final = (HttpMethod.GET, HttpMethod.HEAD)
_SCRIPT: Final = "text/javascript; charset=utf-8"
_MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "js": _SCRIPT,
    "ts": "application/typescript; charset=utf-8",
}
_CONSOLE_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "referrer-policy": "no-referrer",
}


def browser_routes(settings: Settings) -> list[HTTPRouteHandler]:
    """Return a route for each file; without the console if the settings switch it off."""
    shared = {"access-control-allow-origin": "*"}
    routes = [
        _file_route("/client.js", _read("client.js"), "js", {**shared, "x-typescript-types": "./client.d.ts"}),
        _file_route("/client.d.ts", _read("client.d.ts"), "ts", shared),
    ]
    if settings.console == "on":
        options = msgspec.json.encode({"trace_url": settings.trace_url})
        names = sorted(each.name for each in files("handlers").joinpath("browser", "console").iterdir())
        routes += [
            _file_route("/console", _read("console/index.html"), "html", _CONSOLE_HEADERS),
            _file_route("/console/settings.json", options, "json", _CONSOLE_HEADERS),
            *(_file_route(f"/console/{name}", _read(f"console/{name}"), name, _CONSOLE_HEADERS) for name in names),
        ]
    return routes


def _read(name: str) -> bytes:
    return files("handlers").joinpath("browser", *name.split("/")).read_bytes()


def _file_route(path: str, content: bytes, name: str, headers: dict[str, str]) -> HTTPRouteHandler:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {
        **headers,
        "content-type": _MEDIA_TYPES.get(name.rpartition(".")[2], "application/json"),
        "cache-control": "no-cache",
        "etag": tag,
        "x-content-type-options": "nosniff",
    }

    @route(path, http_method=_METHODS, include_in_schema=False, sync_to_thread=False)
    def file(request: Request[Any, Any, Any]) -> Response[bytes]:
        if request.scope["raw_path"].endswith(b"/"):  # relative links would lead elsewhere
            return Response(b"", status_code=307, headers={"location": f"..{path}"})
        known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(b"", status_code=304, headers=headers)
        return Response(content, headers=headers)

    return file

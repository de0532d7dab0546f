"""The routes below `/schema`: the OpenAPI document as an interactive page, as JSON and as YAML.

The page is Swagger UI, and works without internet access: its files are in swagger_ui/, taken unchanged from the npm
package swagger-ui-dist 5.35.0, with their licenses. They are copies because no Python package carries them under public
names, is kept up to date and needs no other web framework. For a newer version, replace all of them.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
from litestar import Request, Response, Router, get
from litestar.datastructures import ResponseHeader
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import License, OpenAPI, Server
from litestar.params import FromPath
from litestar.response import File
from litestar.types import Method

from handlers.openapi.document import INTRODUCTION, complete
from handlers.settings import Settings

__all__ = ["openapi_config"]

_FOLDER: Final = Path(__file__).parent / "swagger_ui"
_FILES: Final = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}

_YAML_TYPES: Final = ("application/yaml", "application/vnd.oai.openapi+yaml")
_MEDIA_TYPES: Final = ["text/html", "application/json", "application/vnd.oai.openapi+json", *_YAML_TYPES]

_LONGEST_ACCEPT: Final = 1024
"""The longest `Accept` header that is read; no client needs more, and Litestar takes up to 4 µs for each byte."""

_HEADERS: Final = {
    # The browser loads nothing from other origins.
    "content-security-policy": "default-src 'none'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{root}/schema/assets/swagger-ui.css">
</head>
<body>
<p class="swagger-ui" style="margin: 1em 2em"><a href="{root}/schema/openapi.json">JSON</a>
<a href="{root}/schema/openapi.yaml">YAML</a></p>
<div id="schema" data-url="{root}/schema/openapi.json"></div>
<script src="{root}/schema/assets/swagger-ui-bundle.js"></script>
<script>
const element = document.getElementById("schema");
SwaggerUIBundle({{url: element.dataset.url, domNode: element, deepLinking: true, validatorUrl: null}});
</script>
</body>
</html>
"""


def openapi_config(settings: Settings, *, version: str) -> OpenAPIConfig:
    """Return Litestar's OpenAPI configuration; if the settings have no API keys, the document calls keys optional."""
    optional: list[dict[str, list[str]]] = [] if settings.api_keys else [{}]
    yaml = _Yaml()
    return _Config(
        title="Event Broadcaster",
        version=version,
        description=INTRODUCTION,
        license=License(name="MIT", identifier="MIT"),
        operation_id_creator=_operation_id,
        security=[*optional, {"bearer": []}, {"apiKey": []}],
        servers=[Server(url=settings.root_path or "/")],
        render_plugins=[_Page(settings.root_path), JsonRenderPlugin(), yaml],
        openapi_router=Router(
            "/schema",
            route_handlers=[schema_asset],
            include_in_schema=False,
            before_request=_negotiation(yaml),
            response_headers=[ResponseHeader(name=name, value=value) for name, value in _HEADERS.items()],
        ),
    )


def _operation_id(_: HTTPRouteHandler, method: Method, path: Sequence[Any]) -> str:
    """Return the operation id for a path, for example `broadcast_detection_new` or `health_live`."""
    name = "_".join(str(part) for part in path).replace("-", "_")
    return f"{name}_head" if method == "HEAD" else name


class _Document(OpenAPI):
    """Litestar's document, completed by `complete`; it is made once, for all requests."""

    def to_schema(self) -> dict[str, Any]:
        return self._plain

    @cached_property
    def _plain(self) -> dict[str, Any]:
        # Plain JSON types, none of them shared: YAML would show tuples and references of Python.
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(complete(super().to_schema())))
        return plain


@dataclass
class _Config(OpenAPIConfig):
    def to_openapi_schema(self) -> OpenAPI:
        plain = super().to_openapi_schema()
        return _Document(**{field.name: getattr(plain, field.name) for field in fields(plain)})


class _Yaml(YamlRenderPlugin):
    """The document as YAML, rendered once: that takes longer than a request may hold the event loop."""

    def __init__(self) -> None:
        super().__init__(media_type=_YAML_TYPES[0])  # type: ignore[arg-type]  # any text will do
        self._rendered: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        if self._rendered is None:
            self._rendered = super().render(request, openapi_schema)
        return self._rendered


class _Page(OpenAPIRenderPlugin):
    """The interactive page; `root_path` is the prefix that a proxy has stripped."""

    def __init__(self, root_path: str) -> None:
        super().__init__(path="/")
        self._root_path = root_path

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        root = html.escape(self._root_path or request.scope.get("root_path", ""))
        return _PAGE.format(title=html.escape(openapi_schema["info"]["title"]), root=root).encode()


def _negotiation(yaml: _Yaml) -> Callable[[Request[Any, Any, Any]], Response[Any] | None]:
    # A closure, because Litestar copies objects, and the copy would render the document again.
    def negotiate(request: Request[Any, Any, Any]) -> Response[Any] | None:
        """Answer `GET /schema` with the document instead of the page if the client prefers JSON or YAML."""
        if "path" in request.path_params:  # Litestar would answer an unknown path below /schema with its own page
            raise NotFoundException
        if request.method == "GET" and request.scope["path_template"] == "/schema":
            if len(request.headers.get("accept", "")) > _LONGEST_ACCEPT:
                return None
            wanted = request.accept.best_match(_MEDIA_TYPES)
            if wanted not in (None, "text/html"):
                document = request.app.openapi_schema.to_schema()
                content = yaml.render(request, document) if wanted in _YAML_TYPES else document
                return Response(content, media_type=wanted)
        return None

    return negotiate


@get("/assets/{name:str}", sync_to_thread=False)
def schema_asset(name: FromPath[str]) -> File:
    """Return one of the files of the page."""
    if name not in _FILES:
        raise NotFoundException
    return File(
        _FOLDER / name,
        media_type=_FILES[name],
        content_disposition_type="inline",
        headers={"cache-control": "public, max-age=86400"},
    )

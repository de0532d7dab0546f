"""ASGI middleware that applies the rules of `handlers/origins.py` to every request.

A request with a foreign `Host` is answered 421. On the routes for events and publishes, a request of an origin that is
not allowed is answered 403, a preflight is answered without asking for credentials, and other answers, errors too, get
the CORS headers with which the browser lets the page read them. `Access-Control-Allow-Credentials` is never sent: the
service has no cookies, and a page sends its key in a header that it sets itself.

Litestar's CORSConfig is not used, because it refuses no request, has no rule for the page's own host, and leaves the
WebSocket out.
"""

import logging
import re
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, Final

from litestar.types import ASGIApp, Message, Receive, Send

from handlers.origins import Access, OriginRules, host_of, normalized
from handlers.server.refusal import ANSWER_HEADERS, Headers, refuse

__all__ = ["CorsMiddleware"]

_logger = logging.getLogger(__name__)

_PREFIXES: Final = frozenset({"ws", "events", "state", "broadcast"})
"""The first parts of the paths on which the `Origin` is checked."""

_METHODS: Final = b"GET, POST, DELETE"
_REQUEST_HEADERS: Final = (
    "Authorization, X-API-Key, Content-Type, Idempotency-Key, Last-Event-ID, traceparent, tracestate, baggage"
)
_MAX_AGE: Final = b"7200"
_EXPOSED: Final = (b"access-control-expose-headers", b"Retry-After, Idempotent-Replayed")
_VARY: Final = (b"vary", b"Origin")


class CorsMiddleware:
    """Checks `Host` and `Origin` before `app`, and adds the CORS headers to what `app` answers."""

    def __init__(self, app: ASGIApp, rules: OriginRules) -> None:
        self._app = app
        self._rules = rules

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Awaitable[None]:  # noqa: ANN401  ASGI
        """Decide, and return the coroutine that answers; so an idle WebSocket has no coroutine of this middleware."""
        if scope["type"] not in ("http", "websocket"):
            return self._app(scope, receive, send)
        host, origin, asked_method, asked_headers = _read(scope["headers"])
        if self._rules.refuses_host(host):
            return _refuse_host(scope, send, host or "")
        if origin is None or not _is_checked(scope):
            return self._app(scope, receive, send)
        access = self._rules.access(origin, host)
        if access is Access.REFUSED:
            return _refuse_origin(scope, send, origin)
        if access is Access.SERVED or scope["type"] == "websocket":
            return self._app(scope, receive, send)
        headers = self._headers(origin)
        if scope["method"] == "OPTIONS" and asked_method is not None:
            return _answer_preflight(send, headers, asked_headers or "")
        scope[ANSWER_HEADERS] = headers = [*headers, _EXPOSED]
        return self._app(scope, receive, _adding(headers, send))

    def _headers(self, origin: str) -> Headers:
        if self._rules.any_origin:
            return [(b"access-control-allow-origin", b"*")]
        return [(b"access-control-allow-origin", origin.encode("latin-1")), _VARY]


def _read(headers: Any) -> tuple[str | None, str | None, str | None, str | None]:  # noqa: ANN401  ASGI
    """Return `Host`, `Origin`, and the method and the headers for which a preflight asks; several values are joined."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in _READ:
            text = value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text
    host, origin, method, asked = (found.get(name) for name in _READ)
    return host, origin, method, asked


_READ: Final = (b"host", b"origin", b"access-control-request-method", b"access-control-request-headers")


def _is_checked(scope: Any) -> bool:  # noqa: ANN401  ASGI
    # The router ignores empty parts of a path, so a comparison with the start of the text could be evaded.
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    first = next((part for part in path.split("/") if part), "")
    return first in _PREFIXES


def _refuse_host(scope: Any, send: Send, authority: str) -> Awaitable[None]:  # noqa: ANN401  ASGI
    host = host_of(authority)
    remedy = "send a valid Host" if host is None else f"to serve this host, add http://{host} to ALLOWED_ORIGINS"
    shown = "an invalid host" if host is None else f"the host {host}"
    _logger.warning("refused a request for %s: %s", shown, remedy)
    detail = (
        f"This is a request for {shown}, but a service that listens on loopback only and needs no credentials answers "
        f"only to loopback names, such as localhost, and to the hosts of ALLOWED_ORIGINS: {remedy}."
    )
    return refuse(scope, send, HTTPStatus.MISDIRECTED_REQUEST, detail)


def _refuse_origin(scope: Any, send: Send, origin: str) -> Awaitable[None]:  # noqa: ANN401  ASGI
    try:
        shown = normalized(origin)
    except ValueError:
        text = "refused a page: its Origin header is not an origin, and ALLOWED_ORIGINS cannot name it"
        _logger.warning(text)
        detail = "The Origin header is not an origin like https://example.org, so ALLOWED_ORIGINS cannot name it."
    else:
        _logger.warning("refused a page of %s: to serve it, add %s to ALLOWED_ORIGINS", shown, shown)
        detail = f"Pages of the origin {shown} are not allowed: to serve them, add {shown} to ALLOWED_ORIGINS."
    return refuse(scope, send, HTTPStatus.FORBIDDEN, detail, [_VARY])


async def _answer_preflight(send: Send, headers: Headers, asked: str) -> None:
    # CORS has no wildcards for a part of a name, so attributes of CloudEvents are allowed by the names asked for.
    events = [name for name in asked.lower().replace(" ", "").split(",") if re.fullmatch("ce-[a-z0-9]+", name)]
    allowed = ", ".join([_REQUEST_HEADERS, *events])
    fields = [
        *headers,
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", allowed.encode()),
        (b"access-control-max-age", _MAX_AGE),
    ]
    await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT, "headers": fields})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _adding(headers: Headers, send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            # A copy, because a route may send the same message to every client.
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return send_with_headers

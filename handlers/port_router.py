"""ASGI middleware that serves an internal application on a port of its own, beside the public one, in one server.

The port is that of the socket on which the request arrived. A client cannot choose it by what it sends, as it could
choose a path or a `Host`.
"""

from collections.abc import Awaitable
from typing import Any

from litestar.types import ASGIApp, Receive, Send

__all__ = ["PortRouter"]


class PortRouter:
    """Passes what arrives on `port` to `internal`, and everything else to `app`."""

    def __init__(self, app: ASGIApp, *, port: int, internal: ASGIApp) -> None:
        self._app = app
        self._port = port
        self._internal = internal

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Awaitable[None]:  # noqa: ANN401  ASGI
        """Return the coroutine of the chosen application, so that an idle WebSocket has none of this middleware."""
        server = scope.get("server")  # None if the ASGI server does not know it
        chosen = self._internal if server is not None and server[1] == self._port else self._app
        return chosen(scope, receive, send)

"""The service with an echo at `/echo`, over its own protocol class: `python -m tests.system.websocket_echo serve`."""

import contextlib
import sys
from typing import Any

from handlers.__main__ import main
from handlers.app import create_app
from handlers.server import server


class _WithEcho:
    """The service's application, which answers a WebSocket at `/echo` by sending every message back."""

    def __init__(self, *arguments: Any) -> None:
        self._app = create_app(*arguments)
        self.state = self._app.state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if (scope["type"], scope.get("path")) != ("websocket", "/echo"):
            await self._app(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        with contextlib.suppress(RuntimeError):  # the connection was closed while messages were waiting
            while (message := await receive())["type"] == "websocket.receive":
                await send(message | {"type": "websocket.send"})


server.create_app = _WithEcho  # type: ignore[assignment,misc]

if __name__ == "__main__":
    sys.exit(main())

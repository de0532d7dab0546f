"""python-socketio on asyncio, with its Redis manager; clients use Engine.IO 4 over WebSocket only."""

import json
import sys
from typing import Any

import socketio
import uvicorn


def main() -> None:
    """Serve on the given port."""
    port, url, channel = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    server = socketio.AsyncServer(
        async_mode="asgi",
        client_manager=socketio.AsyncRedisManager(url, channel=channel),
        transports=["websocket"],
        ping_interval=3600,
    )

    async def publish(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                await server.emit("event", json.loads(body))
                break
        await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    app = socketio.ASGIApp(server, other_asgi_app=publish)
    uvicorn.run(app, port=port, log_level="critical", access_log=False, ws_ping_interval=None, backlog=4096)


if __name__ == "__main__":
    main()

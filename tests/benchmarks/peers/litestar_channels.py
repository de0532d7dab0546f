"""Litestar's channels plugin on its Redis pub/sub backend, as documented."""

import contextlib
import sys
from typing import Any

import redis.asyncio as redis
import uvicorn
from litestar import Litestar, Request, WebSocket, post, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.redis import RedisChannelsPubSubBackend
from litestar.exceptions import WebSocketDisconnect


def main() -> None:
    """Serve on the given port."""
    port, url, channel = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    plugin = ChannelsPlugin(RedisChannelsPubSubBackend(redis=redis.Redis.from_url(url)), channels=[channel])

    @websocket("/ws")
    async def ws(socket: WebSocket[Any, Any, Any], channels: ChannelsPlugin) -> None:
        await socket.accept()
        async with channels.start_subscription([channel]) as subscriber:
            await socket.send_text('{"type":"connected"}')
            async with subscriber.run_in_background(socket.send_text):
                with contextlib.suppress(WebSocketDisconnect):
                    while True:
                        await socket.receive_text()

    @post("/publish", status_code=202)
    async def publish(request: Request[Any, Any, Any], channels: ChannelsPlugin) -> None:
        channels.publish(await request.body(), [channel])

    app = Litestar([ws, publish], plugins=[plugin], openapi_config=None)
    uvicorn.run(app, port=port, log_level="critical", access_log=False, ws_ping_interval=None, backlog=4096)


if __name__ == "__main__":
    main()

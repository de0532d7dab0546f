"""FastAPI, Redis pub/sub, and `await websocket.send_text(text)` for each client and each message."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import redis.asyncio as redis
import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect


def main() -> None:
    """Serve on the given port."""
    port, url, channel = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    link = redis.Redis.from_url(url)
    clients: set[WebSocket] = set()

    async def listen() -> None:
        async with link.pubsub() as pubsub:
            await pubsub.subscribe(channel)
            async for message in pubsub.listen():
                if message["type"] == "message":
                    text = message["data"].decode()
                    for client in list(clients):
                        await client.send_text(text)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(listen())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text('{"type":"connected"}')
        clients.add(websocket)
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.receive_text()
        clients.discard(websocket)

    @app.post("/publish")
    async def publish(request: Request) -> Response:
        await link.publish(channel, await request.body())
        return Response(status_code=202)

    uvicorn.run(app, port=port, log_level="critical", access_log=False, ws_ping_interval=None, backlog=4096)


if __name__ == "__main__":
    main()

"""Two Litestar routes to compare publishing with: /empty does nothing, /publish only runs `PUBLISH`.

The server has the same options as this service's own (`handlers.server.server`).
"""

import sys
from typing import Any

import redis.asyncio as redis
import uvicorn
from litestar import Litestar, Request, post


def main() -> None:
    """Serve on the given port."""
    port, url, channel = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    link = redis.Redis.from_url(url)

    @post("/empty", status_code=202)
    async def empty() -> None:
        return None

    @post("/publish", status_code=202)
    async def publish(request: Request[Any, Any, Any]) -> None:
        await link.publish(channel, await request.body())

    uvicorn.run(
        Litestar([empty, publish], openapi_config=None, logging_config=None),
        port=port,
        http="httptools",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
    )


if __name__ == "__main__":
    main()

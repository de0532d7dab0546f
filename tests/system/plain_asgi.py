"""The same application under stock uvicorn, which takes no prebuilt frames: `python -m tests.system.plain_asgi`."""

import os
import signal
import sys

import uvicorn

from handlers.app import create_app
from handlers.settings import Settings


def main() -> None:
    """Serve with the settings of the environment; `WS` names uvicorn's WebSocket implementation."""
    # uvicorn raises the signal again after it has shut down
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = Settings.from_environment(os.environ)
    assert settings.redis_url is not None
    uvicorn.run(
        create_app(settings, settings.redis_url),
        host=settings.host,
        port=settings.port,
        ws=os.environ["WS"],
        ws_max_size=settings.websocket_max_message_size,
        lifespan="on",
    )


if __name__ == "__main__":
    main()

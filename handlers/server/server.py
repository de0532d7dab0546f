"""The server process: uvicorn on uvloop, with a drain before anything is closed."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Iterator
from functools import partial
from types import FrameType

import uvicorn
import uvloop

from handlers.app import create_app
from handlers.server.embedded import EmbeddedValkey
from handlers.server.http import HttpProtocol
from handlers.server.websocket import WireProtocol
from handlers.settings import Settings
from kernel import EventBroadcaster
from telemetry import configure_logging

__all__ = ["CLOSES_SECONDS", "REQUESTS_SECONDS", "run"]

_logger = logging.getLogger(__name__)

# How long requests in flight, and then sockets that are being closed, may take after the drain.
REQUESTS_SECONDS = 10
CLOSES_SECONDS = 6.0


def run(settings: Settings, *, redis_url: str, embedded: EmbeddedValkey | None) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the exit status."""
    configure_logging(settings.log_level, settings.log_format)
    _logger.info("settings: %s", settings.describe())
    if embedded is not None:
        text = "REDIS_URL is not set: using an embedded Valkey, which lives and dies with this process (pid %s)"
        _logger.info(text, embedded.pid)
    for name in settings.without_effect():
        _logger.warning("%s is set, but has no effect in this version", name)
    app = create_app(settings, redis_url)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=HttpProtocol,
        ws=partial(  # type: ignore[arg-type]  # uvicorn calls it like a class
            WireProtocol,
            high_water=settings.websocket_send_buffer_bytes,
            stall_seconds=settings.websocket_idle_timeout_seconds,
        ),
        ws_max_size=settings.websocket_max_message_size,
        ws_per_message_deflate=False,  # WireProtocol offers its own
        ws_ping_interval=None,  # heartbeats are the contract's own
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_graceful_shutdown=REQUESTS_SECONDS,
    )
    server = _Server(config, app.state.broadcaster, settings.drain_seconds)
    return uvloop.run(_serve(server, embedded))


async def _serve(server: "_Server", embedded: EmbeddedValkey | None) -> int:
    _tame_gc()
    keeper = asyncio.create_task(embedded.supervise()) if embedded is not None else None
    try:
        await server.serve()
    except SystemExit as ended:  # uvicorn's word for a port in use or a failed start; it has logged why
        return int(ended.code or 0)
    finally:
        if keeper is not None:
            keeper.cancel()
    return 0


def _tame_gc() -> None:
    """Collect cycles more rarely, and never look at what the imports left: that was a fifth of a publish's CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class _Server(uvicorn.Server):
    """A server that lets its clients go in good order: uvicorn itself closes every WebSocket at once."""

    def __init__(self, config: uvicorn.Config, broadcaster: EventBroadcaster, drain_seconds: float) -> None:
        super().__init__(config)
        self._broadcaster = broadcaster
        self._drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain; a second signal ends it at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT without raising them again at the end: a drained server exits with status 0."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: object = None) -> None:
        """Drain while the listening socket is still open, then let uvicorn end."""
        drain = asyncio.create_task(self._drain())
        while not drain.done() and not self.force_exit:
            await asyncio.wait([drain], timeout=0.1)
        drain.cancel()
        await super().shutdown()
        if self.force_exit:
            # uvicorn leaves this out then, but connections to Redis are worth a clean end
            await self.lifespan.shutdown()

    async def _drain(self) -> None:
        _logger.info("draining %d connections over %g s", self._broadcaster.connections, self._drain_seconds)
        await self._broadcaster.drain(self._drain_seconds)
        # what was closed answers with its own close frame; the wire aborts who does not
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSES_SECONDS):
                # uvicorn's set of connections has no event to wait for
                while any(isinstance(connection, WireProtocol) for connection in self.server_state.connections):
                    await asyncio.sleep(0.02)

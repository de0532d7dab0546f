"""The server process: start uvicorn on uvloop, handle signals, and drain the clients before anything is closed.

On SIGTERM or SIGINT the listening socket stays open while the clients are sent away over `DRAIN_SECONDS`. Then the
remaining sockets and the requests in flight get a few seconds each, and the application's lifespan ends. A second
signal skips the rest of the drain.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from types import FrameType

import msgspec
import uvicorn
import uvloop

from handlers.app import create_app
from handlers.server.descriptors import ConnectionLimit, DescriptorPlan, raise_descriptor_limit
from handlers.server.embedded import EmbeddedValkey
from handlers.server.garbage_collector import tune_garbage_collector
from handlers.server.http import HttpProtocol
from handlers.server.websocket import WebSocketProtocol
from handlers.settings import Settings
from kernel import EventBroadcaster
from telemetry import configure_logging

__all__ = ["CLOSES_SECONDS", "REQUESTS_SECONDS", "run"]

_logger = logging.getLogger(__name__)

_LIMITED_LOGGERS = {
    "handlers.cors": 0,
    "handlers.problems": 3,  # the class and the place of an unexpected error tell its lines apart
    "handlers.server.http": 1,  # the status
    "handlers.server.websocket": 0,
    "handlers.server.websocket.protocol": 0,
}
"""Loggers with lines that any client can cause, as `configure_logging` takes them."""

CLOSES_SECONDS = 6.0
"""How long the closing handshakes of WebSockets may take after the drain."""

REQUESTS_SECONDS = 10
"""How long requests in flight may take after that."""

ENDING_SECONDS = 0.5
"""How long the answers to publishes that are ended then may take."""


def run(
    settings: Settings,
    *,
    sockets: Sequence[socket.socket],
    internal: Sequence[socket.socket],
    redis_url: str,
    embedded: EmbeddedValkey | None,
) -> int:
    """Serve on these bound sockets until SIGTERM or SIGINT, drain, and return the exit status.

    The `internal` sockets, if there are any, alone serve metrics and health.
    """
    configure_logging(settings.log_level, settings.log_format, _LIMITED_LOGGERS)
    _logger.info("settings: %s", settings.describe())
    if embedded is not None:
        text = "REDIS_URL is not set: using an embedded Valkey, whose events are lost when this process ends (pid %s)"
        _logger.info(text, embedded.pid)
    for name in settings.without_effect():
        _logger.warning("%s is set but has no effect in this version", name)
    plan = DescriptorPlan.for_limit(raise_descriptor_limit())
    limit = ConnectionLimit(plan.connections)
    cap = plan.cap(settings.websocket_max_connections)
    internal_port = internal[0].getsockname()[1] if internal else None  # INTERNAL_PORT may be 0: any free port
    app = create_app(
        msgspec.structs.replace(settings, websocket_max_connections=cap, internal_port=internal_port), redis_url
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(  # type: ignore[arg-type]  # uvicorn only calls it
            HttpProtocol, request_seconds=settings.http_request_seconds, limit=limit
        ),
        ws=partial(  # type: ignore[arg-type]  # uvicorn only calls it
            WebSocketProtocol,
            high_water=settings.websocket_send_buffer_bytes,
            stall_seconds=settings.websocket_idle_timeout_seconds,
            limit=limit,
        ),
        ws_max_size=settings.websocket_max_message_size,
        ws_per_message_deflate=False,  # WebSocketProtocol negotiates its own
        ws_ping_interval=None,  # the application sends heartbeats
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=settings.http_keep_alive_seconds,  # type: ignore[arg-type]  # uvicorn only adds it to a time
        timeout_graceful_shutdown=REQUESTS_SECONDS + 5,
    )
    if internal_port is not None:
        _logger.info("metrics and health are served on port %d alone", internal_port)
    server = _Server(config, app.state.broadcaster, settings.drain_seconds)
    # Reading an integer takes quadratic time: 0.1 s for a body of 1 MiB with integers of 4,300 digits, Python's default
    # limit.
    sys.set_int_max_str_digits(sys.int_info.str_digits_check_threshold)
    return uvloop.run(_serve(server, [*sockets, *internal], embedded))


async def _serve(server: "_Server", sockets: Sequence[socket.socket], embedded: EmbeddedValkey | None) -> int:
    tune_garbage_collector()
    supervision = asyncio.create_task(embedded.supervise()) if embedded is not None else None
    try:
        await server.serve(list(sockets))
    except SystemExit as ended:  # uvicorn raises it, after logging why, if the port is in use or the start failed
        return int(ended.code or 0)
    finally:
        if supervision is not None:
            supervision.cancel()
    return 0


class _Server(uvicorn.Server):
    """A uvicorn server that drains its clients first; uvicorn itself closes every WebSocket at once."""

    def __init__(self, config: uvicorn.Config, broadcaster: EventBroadcaster, drain_seconds: float) -> None:
        super().__init__(config)
        self._broadcaster = broadcaster
        self._drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the drain; a second signal ends it at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Stop as after SIGTERM if the terminal is gone; otherwise go on, because there is nothing to reload."""
        if sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty():
            self.handle_exit(sig, frame)
        else:
            _logger.info("SIGHUP: there is nothing to reload; the service goes on")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM, SIGINT and SIGHUP while the server runs.

        uvicorn raises the signal again at its end; this server does not, so that it exits with status 0.
        """
        handlers = {
            signal.SIGINT: self.handle_exit,
            signal.SIGTERM: self.handle_exit,
            signal.SIGHUP: self.handle_hangup,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and log the address; uvicorn logs it only for sockets that it has bound itself."""
        try:
            await super().startup(sockets)
        except OSError as error:  # another process has bound the port at the same time, and listens already
            ports = " or ".join(sorted({str(bound.getsockname()[1]) for bound in sockets or ()}))
            _logger.error("cannot listen on %s port %s: %s", self.config.host, ports, error)
            await self.lifespan.shutdown()
            raise SystemExit(1) from None
        if sockets:
            self._log_started_message(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain while the listening socket is still open, then let uvicorn shut down."""
        drain = asyncio.create_task(self._drain())
        while not drain.done() and not self.force_exit:
            await asyncio.wait([drain], timeout=0.1)
        drain.cancel()
        ending = asyncio.create_task(self._end_requests())
        await super().shutdown(sockets)
        ending.cancel()
        if self.force_exit:
            # uvicorn skips the lifespan after a second signal; the connections to Redis should still be closed
            await self.lifespan.shutdown()

    async def _end_requests(self) -> None:
        """End the requests that are still in flight after `REQUESTS_SECONDS`; each of them is answered 503.

        Publishes that wait for Redis are ended by the kernel, so that their answers say what may have become of them.
        """
        await asyncio.sleep(REQUESTS_SECONDS)
        self._broadcaster.end_publishes()
        await asyncio.sleep(ENDING_SECONDS)
        requests = list(self.server_state.tasks)
        if requests:
            text = "ending %d requests that were not answered within %d s after the drain, with status 503"
            _logger.warning(text, len(requests), REQUESTS_SECONDS)
        for request in requests:
            request.cancel()

    async def _drain(self) -> None:
        _logger.info("draining %d connections over %g s", self._broadcaster.connections, self._drain_seconds)
        await self._broadcaster.drain(self._drain_seconds)
        # Each client answers with its own close frame; the protocol aborts a client that does not.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSES_SECONDS):
                # uvicorn has no event for the end of a connection
                while any(isinstance(connection, WebSocketProtocol) for connection in self.server_state.connections):
                    await asyncio.sleep(0.02)

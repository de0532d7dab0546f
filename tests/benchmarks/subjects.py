"""The subjects: this service and its peers, and how to start each, connect to it and publish to it.

A `Server` is the process of a subject, with a load client of its own. The measurements are in `rows/`.
"""

import contextlib
import os
import secrets
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from urllib.request import urlopen

import msgspec
import redis

from tests import processes
from tests.benchmarks.load import STAMP, Connected, Load, Received
from tests.benchmarks.machine import built, cpu_seconds, memory, peak, pin_to_server_core, restart_peak
from tests.waiting import wait_until

__all__ = [
    "CHANNELS",
    "FASTAPI",
    "OURS",
    "RAW",
    "ROUTES",
    "SEND",
    "SOCKETIO",
    "STREAMS",
    "Server",
    "Subject",
    "batch_request",
    "data_of",
    "frame_of",
    "request",
]

_PEERS = Path(__file__).parent / "peers"
_LARGEST_BODY = 900_000
_POSTERS = 4
_encode = msgspec.json.encode


class Subject(NamedTuple):
    """A server to be measured.

    `way` is how many events are published at once: by this service's batch route, by `PUBLISH` of complete frames, by
    the library's `emit`, or by a request with a repeat count. `speed` is an estimate of its deliveries per second, from
    which the length of a round is chosen. `until` and `hello` are the greeting, for the load client.
    """

    name: str
    module: str
    way: Literal["batch", "publish", "emit", "repeat"]
    speed: int
    path: str = "/ws"
    until: str = "connected"
    hello: str = ""
    package: str = ""

    @property
    def source(self) -> Path:
        """The source file, if the subject is a program in C."""
        return _PEERS / self.module

    def available(self) -> bool:
        """Return True if the subject can run here."""
        if self.source.suffix == ".c":
            return built(self.source) is not None
        return not self.package or find_spec(self.package) is not None


OURS = Subject("this service", "handlers", "batch", 4_000_000, path="/ws/events")
STREAMS = OURS._replace(name="this service, /events", path="/events")
FASTAPI = Subject("FastAPI, a send per client", "fastapi_loop", "publish", 70_000, package="fastapi")
CHANNELS = Subject("Litestar channels plugin", "litestar_channels", "publish", 90_000)
SOCKETIO = Subject(
    "python-socketio",
    "socketio_server",
    "emit",
    40_000,
    path="/socket.io/?EIO=4&transport=websocket",
    until="40{",
    hello="40",
    package="socketio",
)
RAW = Subject("raw asyncio transports", "raw_transports", "repeat", 170_000, until="")
SEND = Subject("C, one send(2) each", "send.c", "repeat", 200_000, until="")
ROUTES = Subject("Litestar routes", "litestar_routes", "repeat", 0)


def data_of(size: int) -> dict[str, Any]:
    """Return event data whose frame has about `size` bytes and contains a time stamp."""
    data = {
        "id": 1,
        "event_id": 1,
        "batch_id": "batch-0001",
        "camera_id": "front_door",
        "risk_score": 40,
        "risk_level": "medium",
        "summary": f"{STAMP} A person at the door",
        "reasoning": "",
        "started_at": "2026-01-31T12:00:00.000Z",
    }
    # Text, so that it is as compressible as real data.
    words = " ".join(f"{word} {number}" for number in range(size // 20) for word in ("person", "parcel", "left"))
    return {**data, "reasoning": words[: max(0, size - len(frame_of(data)))]}


def frame_of(data: dict[str, Any]) -> bytes:
    """Return the message that peers send, equal to the message that this service would send for the data."""
    return _encode({"type": "event", "data": data, "sequence": 1000000, "requires_ack": False})


def request(path: str, body: bytes, *headers: str) -> bytes:
    """Return the bytes of an HTTP request."""
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers)
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body


def batch_request(data: dict[str, Any], size: int) -> bytes:
    """Return a request with `size` events for this service's batch route."""
    return request("/broadcast/batch", b"[" + b",".join([_encode({"type": "event", "data": data})] * size) + b"]")


class Server:
    """The process of a subject, pinned to the servers' core unless `shared`, and its load client."""

    def __init__(
        self,
        subject: Subject,
        redis_url: str,
        *,
        channel: str = "",
        fallback: bool = False,
        shared: bool = False,
        **settings: str,
    ) -> None:
        self.subject = subject
        self.channel = channel or f"bench-{secrets.token_hex(4)}"
        self._fallback = fallback
        self.redis_url = redis_url
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        with contextlib.ExitStack() as stack:
            process = processes.running(self._command(), env={**os.environ, **self._environ(), **settings})
            self._process = stack.enter_context(process)
            if not shared:
                pin_to_server_core(self._process.pid)
            self._wait_until_it_listens()
            self.load = stack.enter_context(self.extra_load())
            self.load.open_posters(_POSTERS, self.port)
            self._stack = stack.pop_all()  # from here on `close` ends them

    def connect(self, clients: int, path: str = "", **how: Any) -> Connected:
        """Connect clients, by default with the subject's own greeting and path."""
        how = {"until": self.subject.until, "hello": self.subject.hello, **how}
        if how.get("deflate") and how["until"]:
            how["until"] = "*"  # the greeting may be compressed
        return self.load.connect(clients, self.port, path or self.subject.path, **how)

    def extra_load(self) -> Load:
        """Start another load client of the same kind."""
        return Load(fallback=self._fallback)

    def one(self, data: dict[str, Any]) -> bytes:
        """Return the request that publishes one event."""
        match self.subject.way:
            case "batch":
                return request("/broadcast/event", _encode(data))
            case "emit":
                return request("/publish", _encode(data))
            case _:
                return request("/publish", frame_of(data))

    def publish(self, data: dict[str, Any], events: int) -> None:
        """Publish many events as fast as the server accepts them."""
        match self.subject.way:
            case "batch":
                most = max(1, min(500, events, _LARGEST_BODY // len(frame_of(data))))
                self.load.post(batch_request(data, most), events // most)
                if events % most:
                    self.load.post(batch_request(data, events % most))
            case "repeat":
                self.load.post(request("/publish", frame_of(data), f"X-Repeat: {events}"))
            case "publish":
                with redis.Redis.from_url(self.redis_url) as link, link.pipeline(transaction=False) as pipeline:
                    for _ in range(events):
                        pipeline.publish(self.channel, frame_of(data))
                    pipeline.execute()
            case "emit":
                import socketio

                manager = socketio.RedisManager(self.redis_url, channel=self.channel, write_only=True)
                for _ in range(events):
                    manager.emit("event", data)

    def saturate(self, data: dict[str, Any], events: int) -> dict[str, float]:
        """Publish as fast as possible for one round; return deliveries per second and CPU microseconds per delivery.

        `busy` and `client_busy` are the CPU shares of the server and of the load client.
        """
        self.load.expect(events)
        cpu, start = self.cpu(), time.monotonic_ns()
        self.publish(data, events)
        got = self.load.wait(120)
        return self._figures(got, start, cpu)

    def _figures(self, got: Received, start: int, cpu: float) -> dict[str, float]:
        used, seconds = self.cpu() - cpu, (got.last - start) / 1e9
        return {
            "rate": got.frames / seconds,
            "cpu": used / got.frames * 1e6,
            "busy": min(1.0, used / seconds),
            "client_busy": min(1.0, got.cpu / seconds),
        }

    def cpu(self) -> float:
        """Return the CPU seconds that the server has used."""
        return cpu_seconds(self._process.pid)

    def memory(self) -> int:
        """Return the resident memory of the server, in bytes."""
        return memory(self._process.pid)

    def restart_peak(self) -> int:
        """Start to measure the peak of the memory again; return the memory that is resident now, in bytes."""
        return restart_peak(self.pid)

    def peak(self) -> int:
        """Return the most memory, in bytes, that was resident since `restart_peak`."""
        return peak(self.pid)

    def until_ready(self, seconds: float = 120.0) -> None:
        """Wait until the service may be sent clients; only for this service."""
        wait_until(self._is_ready, seconds)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    def close(self) -> None:
        """Stop the load client and the server."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _command(self) -> list[str]:
        module = self.subject.module
        if self.subject.way == "batch":
            return [sys.executable, "-m", module, "serve", "--port", str(self.port)]
        if self.subject.source.suffix == ".c":
            return [str(built(self.subject.source)), str(self.port)]
        return [sys.executable, "-m", f"tests.benchmarks.peers.{module}", str(self.port), self.redis_url, self.channel]

    def _environ(self) -> dict[str, str]:
        return {
            "REDIS_URL": self.redis_url,
            "REDIS_EVENT_CHANNEL": self.channel,
            "WEBSOCKET_PING_INTERVAL_SECONDS": "3600",  # peers send no heartbeats either
            "WEBSOCKET_IDLE_TIMEOUT_SECONDS": "3600",
            "DRAIN_SECONDS": "0",
            "HISTORY_SIZE": "100000",  # so that a load client delayed by a busy machine is not closed
            "LOG_LEVEL": "ERROR",
        }

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"{self.subject.name} does not listen (exit status {self._process.poll()})")

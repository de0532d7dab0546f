"""Foreign clients of server-sent events: each gets every event once, whatever happens to the replicas."""

import asyncio
import json
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlencode

import httpx
import pytest
from httpx_sse import aconnect_sse

from tests import processes
from tests.history import ClientRecord, Connection, violations
from tests.system.event_stream import event_stream
from tests.system.fault_environment import FaultEnvironment
from tests.system.proxies import program
from tests.system.replica import ROOT, Replica
from tests.waiting import eventually

SOURCES = Path(__file__).parent / "event_sources"
TOOLS = ROOT / ".generators"
CONTROLS = ["connected", "resync_ack", "gap", "epoch_changed", "service_status", "system.shutdown", "closing"]
DRAIN = 0.3


class Message(TypedDict):
    """A message as a client hands it on."""

    event: str
    data: str
    id: str


Messages = list[Message]
Listen = Callable[[str, Path, Messages], AbstractAsyncContextManager[None]]


# -- the clients ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def npm_eventsource(url: str, folder: Path, messages: Messages) -> AsyncIterator[None]:
    """Listen with npm's `eventsource` in Node.js."""
    node = TOOLS / "bin" / "node"
    if not node.exists():
        (pytest.fail if "ALL_TESTS" in os.environ else pytest.skip)("run tests/system/generators/install")
    # `node` is a script that starts the program; ending it would leave that
    real = processes.run([node, "-p", "process.execPath"]).stdout.strip()
    (folder / "node_modules").symlink_to(TOOLS / "node_modules")
    (folder / "listen.mjs").write_bytes((SOURCES / "eventsource.mjs").read_bytes())
    with processes.running([real, folder / "listen.mjs", url, *CONTROLS], stdout=subprocess.PIPE, text=True) as process:
        lines = process.stdout
        assert lines is not None
        reader = threading.Thread(target=lambda: messages.extend(map(json.loads, lines)))
        reader.start()
        try:
            yield
        finally:
            processes.end(process)
            reader.join()


@asynccontextmanager
async def chromium(url: str, folder: Path, messages: Messages) -> AsyncIterator[None]:
    """Listen with the `EventSource` of Chromium, in a page of another origin."""
    with page_server(messages) as origin:
        address = f"{origin}/?{urlencode({'url': url, 'names': ','.join(CONTROLS)})}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", f"--user-data-dir={folder}"]
        with processes.running([program("chromium"), *options, address]):
            yield


@asynccontextmanager
async def httpx_sse(url: str, folder: Path, messages: Messages) -> AsyncIterator[None]:
    """Listen with Python's `httpx-sse`, which leaves the reconnect to the application."""

    async def listen() -> None:
        last_id, retry = "", 1000
        async with httpx.AsyncClient(trust_env=False, timeout=None) as http:
            while True:
                headers = {"Last-Event-ID": last_id} if last_id else {}
                with suppress(httpx.TransportError):
                    async with aconnect_sse(http, "GET", url, headers=headers) as source:
                        async for sse in source.aiter_sse():
                            last_id, retry = sse.id or last_id, sse.retry or retry
                            if sse.data:  # a heartbeat has none
                                messages.append({"event": sse.event, "data": sse.data, "id": sse.id})
                await asyncio.sleep(retry / 1000)

    listening = asyncio.create_task(listen())
    try:
        yield
    finally:
        assert not listening.done()
        listening.cancel()


@contextmanager
def page_server(messages: Messages) -> Iterator[str]:
    """Serve the page and collect what it reports; yields its origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write((SOURCES / "page.html").read_bytes())

        def do_POST(self) -> None:
            messages.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# -- the test ---------------------------------------------------------------------------------------------------------


class Relay:
    """A port that leads to a replica; `opened` and `ended` are the times at which connections were."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.opened: list[float] = []
        self.ended: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on."""
        self.opened.append(time.monotonic())
        with suppress(OSError):
            there, onward = await asyncio.open_connection("127.0.0.1", self.replica.port)
            ways = [asyncio.create_task(copy(*way)) for way in ((reader, onward), (there, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            onward.close()
        self.ended.append(time.monotonic())
        writer.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass data on in one direction until it ends."""
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


def record_of(messages: Messages) -> ClientRecord:
    """Return the record of a client for the history checker, and check the ids."""
    record = ClientRecord("foreign", None)
    for message in messages:
        frame: dict[str, Any] = json.loads(message["data"])
        if frame["type"] == "connected":
            epoch = frame["epoch"]
            record.connections.append(Connection("", None, "", []))
        connection = record.connections[-1]
        assert isinstance(connection.frames, list)
        connection.frames.append(frame)
        if frame["type"] == "resync_ack":
            connection.since, connection.epoch = frame["last_sequence"], epoch
        if "sequence" in frame:
            assert (message["event"], message["id"]) == ("message", f"{epoch}:{frame['sequence']}")
    return record


@pytest.mark.parametrize("listen", [npm_eventsource, chromium, httpx_sse])
async def test_every_event_once(env: FaultEnvironment, listen: Listen, tmp_path: Path) -> None:
    """A client comes back to a full replica, resumes on another one after a kill, and follows a drain's `retry`."""
    options = {"websocket_max_connections": 1, "drain_seconds": DRAIN, "allowed_origins": "*"}
    first, second = await env.start_replicas(2, **options)
    relay = Relay(first)
    messages: Messages = []

    def has(number: int | None) -> bool:
        assert number is not None
        return any(message["id"].endswith(f":{number}") for message in messages)

    async with await asyncio.start_server(relay.serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/events"
        async with event_stream(first) as other, listen(url, tmp_path, messages):
            await other.named("connected")
            await eventually(lambda: len(relay.ended) >= 2, 60)
            assert not messages
            await other.close()
            await other.answer.aclose()

            await eventually(lambda: len(messages) == 1, 20)
            numbers = await env.publish(first, 30)
            text = {"id": "text", "reason": "\u2028 \x85 \x0c \x1e\r\n\r\nid: 1\n\n: \ufeff é 🎥"}
            receipt = (await first.post("/broadcast/alert/deleted", text)).json()
            env.history.receipt("alert_deleted", text, receipt)
            await eventually(lambda: has(receipt["sequence"]), 20)

            relay.replica = second
            first.kill()
            numbers = await env.publish(second, 30)
            await eventually(lambda: has(numbers[-1]), 20)

            await asyncio.to_thread(first.start)
            relay.replica = first
            opened = len(relay.opened)
            second.signal()
            numbers = await env.publish(first, 5)
            await eventually(lambda: len(relay.opened) > opened, 20)
            assert DRAIN - 0.1 < relay.opened[opened] - relay.ended[-1] < DRAIN + 0.65  # before, it was 1 s or more
            numbers = await env.publish(first, 5)
            await eventually(lambda: has(numbers[-1]), 20)
            assert await asyncio.to_thread(second.ended) == 0
    record = record_of(messages)
    assert len(record.connections) == 3
    assert all(connection.since is not None for connection in record.connections[1:])
    env.history.complete = True
    assert violations(env.history, [record]) == []

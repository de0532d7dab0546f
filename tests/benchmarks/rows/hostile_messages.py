"""Hostile WebSocket clients: the cost of messages and patterns that are slow to handle."""

import asyncio
import zlib
from contextlib import AsyncExitStack

import msgspec

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.rows.held import Probed
from tests.benchmarks.subjects import OURS, request
from tests.system.raw_websocket import TEXT, RawWebSocket, raw_websocket

__all__ = ["DEFLATE", "LIMITED", "ROW", "deflated", "event", "numbers", "subscribe"]

DEFLATE = {"Sec_WebSocket_Extensions": "permessage-deflate"}
# The start of the cases of one client, for which there is a limit of 10 ms.
LIMITED = "one client"
_MESSAGES = 128
_CLIENTS = 60
_PATTERNS = 100
_CLASSES = [
    "".join(f"{chr(0x4E00 + 111 * at + 3 * n)}-{chr(0x4E01 + 111 * at + 3 * n)}" for n in range(5)) for at in range(12)
]


def run(bench: Bench) -> None:
    """Measure each case with a server of its own."""
    cases = {
        f"{LIMITED}, {_MESSAGES} deflated messages of 65 kB of 1e999": numbers,
        f"{LIMITED}, a subscribe to {_PATTERNS} patterns of 242 characters": subscribe,
    }
    for case, measure in cases.items():
        with Probed(bench.redis_url) as server:
            for number in range(bench.rounds + 1):
                values = asyncio.run(measure(server, number))
                if number:
                    bench.results.add("hostile-messages", case, OURS.name, values)
        bench.say(f"  {case}")
    clients = _CLIENTS // 6 if bench.quick else _CLIENTS
    case = f"an event with a name of 300 characters to {clients} x {_PATTERNS} patterns of 256"
    for _ in range(bench.rounds):
        with Probed(bench.redis_url) as server:
            bench.results.add("hostile-messages", case, OURS.name, asyncio.run(event(server, clients)))
    bench.say(f"  {case}")


def deflated(text: str) -> bytes:
    """Return a text as the payload of one compressed frame (RFC 7692, 7.2.1)."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(text.encode()) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def numbers(server: Probed, number: int, *, messages: int = _MESSAGES) -> dict[str, float]:
    """Send messages that are full of numbers; return milliseconds of blocking, and of CPU for each message."""
    payload = deflated('{"type":"ping","x":[' + "1e999," * 10_900 + f"{number}]}}")
    async with raw_websocket(server, **DEFLATE) as raw:
        server.held()
        cpu = server.cpu()
        for _ in range(messages):
            raw.send(TEXT, payload, compressed=True)
        raw.send(TEXT, b'{"type":"unsubscribe"}')
        await _replied(raw, "unsubscribed")
        return {"held": server.held(), "cpu": (server.cpu() - cpu) / messages}


async def subscribe(server: Probed, number: int) -> dict[str, float]:
    """Subscribe once to patterns that match nothing and could match short names."""
    async with raw_websocket(server) as raw:
        await raw.receive()
        globs = ["".join(f"[{each}{number * 100 + at:04}]*" for each in _CLASSES[:11]) for at in range(_PATTERNS)]
        server.held()
        cpu = server.cpu()
        await _subscribe(raw, globs)
        return {"held": server.held(), "cpu": server.cpu() - cpu}


async def event(server: Probed, clients: int, *, events: int = 3) -> dict[str, float]:
    """Publish events that are compared with different patterns of each client, none of which matches.

    `first` is the CPU of the first one, for which the automata of the patterns are made.
    """
    body = {"event_type": "a" * 300, "worker_name": "w", "worker_type": "detection", "timestamp": "noon"}
    ready = request("/broadcast/worker-status", msgspec.json.encode(body))
    async with AsyncExitStack() as stack:
        for client in range(clients):
            raw = await stack.enter_async_context(raw_websocket(server))
            await _subscribe(raw, [f"{'*a' * 125}{client:03}{at:03}" for at in range(_PATTERNS)])
        await asyncio.to_thread(server.connect, 1)
        server.held()
        used = []
        for count in (1, events):
            cpu = server.cpu()
            server.load.expect(count)
            await asyncio.to_thread(server.load.post, ready, count)
            await asyncio.to_thread(server.load.wait)
            used.append((server.cpu() - cpu) / count)
        return {"held": server.held(), "first": used[0], "cpu": used[1]}


async def _subscribe(raw: RawWebSocket, globs: list[str]) -> None:
    raw.send(TEXT, msgspec.json.encode({"type": "subscribe", "events": globs}))
    await _replied(raw, "subscribed")


async def _replied(raw: RawWebSocket, action: str) -> None:
    """Wait for the reply to the last message."""
    while (frame := await raw.receive()).opcode != TEXT or frame.json.get("action") != action:
        pass


ROW = Row(
    "hostile-messages",
    Table(
        "Hostile WebSocket clients",
        (
            Column("held", "longest, ms", 1),
            Column("cpu", "CPU ms each", 2, 1e3),
            Column("first", "CPU ms of the first", 0, 1e3),
        ),
    ),
    run,
)

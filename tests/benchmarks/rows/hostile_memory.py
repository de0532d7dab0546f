"""Hostile and slow clients: the peak of the memory that they make the server use, measured with new servers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import redis

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.machine import most_descriptors
from tests.benchmarks.results import Column, Table
from tests.benchmarks.rows.held import Probed
from tests.benchmarks.rows.hostile_messages import DEFLATE, deflated
from tests.benchmarks.subjects import OURS, Server, data_of
from tests.system.raw_http import raw_http
from tests.system.raw_websocket import TEXT, RawWebSocket, raw_websocket
from tests.system.redis_server import RedisServer

__all__ = ["LARGE", "ROW", "bombs", "filled", "frozen", "halves", "heads", "resumes", "target"]

MIB = 2**20
# Settings with which an event may have 1 MiB.
LARGE = {"EVENT_MAX_BYTES": str(MIB), "HTTP_MAX_BODY_BYTES": str(2 * MIB)}
_REQUEST_SECONDS = 2.0


def run(bench: Bench) -> None:
    """Measure each case once, each with a new process, because memory is not returned."""

    def add(case: str, values: dict[str, float]) -> None:
        bench.results.add("hostile-memory", case, OURS.name, values)
        bench.say(f"  {case}")

    frames, megabytes, half, events = (700, 38, 500, 100) if bench.quick else (2800, 152, 3000, 500)
    half = min(half, most_descriptors() // 2)
    with Probed(bench.redis_url) as server:
        add(f"12 clients, {frames:,} deflated messages of 64 KiB each", asyncio.run(bombs(server, 12, frames)))
    with Probed(bench.redis_url) as server:
        add(f"{megabytes} MB of header fields", asyncio.run(heads(server, megabytes)))
    with Probed(bench.redis_url) as server:
        add(f"a target of {megabytes // 4} MB", asyncio.run(target(server, megabytes // 4)))
    with Probed(bench.redis_url, HTTP_REQUEST_SECONDS=str(_REQUEST_SECONDS)) as server:
        add(f"{half:,} half requests", asyncio.run(halves(server, half, _REQUEST_SECONDS)))
    with RedisServer() as own, Probed(own.url, **LARGE) as server:
        add("300 publishes of 1 MB while Redis hangs", asyncio.run(frozen(server, own, 300)))
    with filled(bench.redis_url, events) as channel, Probed(bench.redis_url, channel=channel, **LARGE) as server:
        add(f"4 slow clients, {events} events of 1 MB behind", asyncio.run(resumes(server, events)))


@contextlib.asynccontextmanager
async def _measured(server: Probed) -> AsyncIterator[dict[str, float]]:
    """Add the memory, in bytes, by which the server grew at most, and the milliseconds for which it was blocked."""
    values: dict[str, float] = {}
    before = server.restart_peak()
    server.held()
    yield values
    values |= {"memory": server.peak() - before, "held": server.held()}


async def bombs(server: Probed, clients: int, frames: int, *, seconds: float = 2.0) -> dict[str, float]:
    """Send messages that inflate to a thousand times their size, faster than the server takes them."""
    payload = deflated(" " * 65535)
    async with AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(raw_websocket(server, **DEFLATE)) for _ in range(clients)]
        async with _measured(server) as values:
            for raw in raws:
                for _ in range(frames):
                    raw.send(TEXT, payload, compressed=True)
            await asyncio.sleep(seconds)
    return values


async def heads(server: Probed, megabytes: int) -> dict[str, float]:
    """Send header fields until the server has had enough."""
    fields = b"".join(b"X-%06d: %b\r\n" % (number, b"x" * 985) for number in range(1000))
    return await _flood(server, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n", fields, megabytes)


async def target(server: Probed, megabytes: int) -> dict[str, float]:
    """Send a request target without end."""
    return await _flood(server, b"GET /health/live?", b"x" * 1_000_000, megabytes)


async def _flood(server: Probed, start: bytes, megabyte: bytes, megabytes: int) -> dict[str, float]:
    async with raw_http(server) as raw, _measured(server) as values:
        await raw.send(start)
        for _ in range(megabytes):
            if raw.writer.is_closing():
                break
            await raw.send(megabyte)
        values["status"] = (await raw.answer()).status
    return values


async def halves(server: Probed, count: int, seconds: float) -> dict[str, float]:
    """Open connections that never finish their request; count those that are open a second after the limit."""
    async with AsyncExitStack() as stack, _measured(server) as values:
        raws = [await stack.enter_async_context(raw_http(server)) for _ in range(count)]
        for raw in raws:
            await raw.send(b"GET /health/live HTTP/1.1\r\nHost:")
        ends = [asyncio.create_task(raw.ended()) for raw in raws]
        _, open_ = await asyncio.wait(ends, timeout=seconds + 1)
        values["open"] = len(open_)
        for end in open_:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
    return values


async def frozen(server: Probed, redis: RedisServer, count: int, *, seconds: float = 2.0) -> dict[str, float]:
    """Publish events of 1 MB at once while Redis hangs; `accepted` is the share of them."""
    ready = server.one(data_of(1_000_000))
    server.load.post(ready)

    async def publish() -> int:
        async with raw_http(server) as raw:
            await raw.send(ready)
            async with asyncio.timeout(120):
                return int((await raw.reader.readline()).split()[1])

    async with _measured(server) as values:
        redis.freeze()
        try:
            publishing = [asyncio.create_task(publish()) for _ in range(count)]
            await asyncio.sleep(seconds)
        finally:
            redis.thaw()
        statuses = await asyncio.gather(*publishing)
    if not set(statuses) <= {202, 503}:
        raise RuntimeError(f"unexpected answers: {sorted(set(statuses))}")
    return {**values, "accepted": statuses.count(202)}


@contextlib.contextmanager
def filled(redis_url: str, events: int) -> Iterator[str]:
    """Yield a channel whose history has that many events of 1 MB; the history is deleted afterwards."""
    with Server(OURS, redis_url, **LARGE) as server:
        server.load.post(server.one(data_of(1_000_000)), events)
        channel = server.channel
    try:
        yield channel
    finally:
        with redis.Redis.from_url(redis_url) as link:
            link.delete(f"{{{channel}}}:history")


async def resumes(server: Probed, events: int, *, seconds: float = 4.0) -> dict[str, float]:
    """Let four clients read 7 MB/s each of what they missed; each starts elsewhere, so that they share no page."""
    with redis.Redis.from_url(server.redis_url, decode_responses=True) as link:
        epoch = link.hget(f"{{{server.channel}}}:position", "epoch")
    server.until_ready()

    async def read(raw: RawWebSocket) -> int:
        frames, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            frame = await raw.receive()
            frames += len(frame.payload) > 900_000
            await asyncio.sleep(len(frame.payload) / 7e6)
        return frames

    async with AsyncExitStack() as stack, _measured(server) as values:
        paths = [f"/ws/events?epoch={epoch}&since={events * number // 8}" for number in range(4)]
        raws = [await stack.enter_async_context(raw_websocket(server, path, receive_buffer=65536)) for path in paths]
        values["frames"] = sum(await asyncio.gather(*map(read, raws)))
    return values


ROW = Row(
    "hostile-memory",
    Table(
        "Hostile and slow clients: memory",
        (
            Column("memory", "at most, MB more", 0, 1e-6),
            Column("held", "longest, ms", 1),
            Column("open", "open afterwards"),
        ),
    ),
    run,
)

"""The load client in Python, for machines without a compiler; the commands are in load.py. Much slower than load.c."""

import asyncio
import json
import resource
import sys
import time
from typing import Any

_DIGITS = 19


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _samples(nanoseconds: list[int]) -> dict[str, float]:
    ordered = sorted(nanoseconds) or [0]
    size = len(ordered)
    p50, p99, most = ordered[size // 2], ordered[size * 99 // 100], ordered[-1]
    return {"count": len(nanoseconds), "p50": p50 / 1e3, "p99": p99 / 1e3, "max": most / 1e3}


class _Tally:
    """The counts since `expect`."""

    def __init__(self, each: int, *, stamped: bool) -> None:
        self.each = each
        self.stamped = stamped
        self.first = self.last = self.done = self.bytes = self.extra = 0
        self.latency: list[int] = []
        self.cpu = _cpu()
        self.changed = asyncio.Event()


class _Client:
    """One WebSocket, or one stream of server-sent events if the path is `/events`."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self.got = 0
        self.begun = time.monotonic_ns()
        self.first = 0

    async def connect(self, port: int, path: str, until: bytes, hello: bytes, *, deflate: bool) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        self._stream = path.startswith("/events")
        if self._stream:
            self._writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode())
            assert (await self._reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        else:
            await self._shake_hands(path, deflate=deflate)
        self.first = time.monotonic_ns()
        if hello:
            self._writer.write(bytes((0x81, 0x80 | len(hello), 0, 0, 0, 0)) + hello)
        while until and until not in b"*" + await self._message():
            pass
        self.live = time.monotonic_ns()

    async def _shake_hands(self, path: str, *, deflate: bool) -> None:
        extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else ""
        self._writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{extension}\r\n".encode()
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        assert not deflate or b"permessage-deflate" in head

    async def read(self) -> None:
        while True:
            self._load.take(self, await self._message())

    async def _message(self) -> bytes:
        while self._stream:
            line = await self._reader.readuntil(b"\n")
            self._load.tally.bytes += len(line)
            if line.startswith(b"data: "):
                return line[6:-1]
        while True:
            head = await self._reader.readexactly(2)
            length, size = head[1], 2
            if length > 125:
                more = await self._reader.readexactly(2 if length == 126 else 8)
                length, size = int.from_bytes(more), size + len(more)
            payload = await self._reader.readexactly(length)
            self._load.tally.bytes += size + length
            if head[0] & 15 < 8:
                return payload


class _Load:
    """The clients, the publishers, and the commands."""

    def __init__(self) -> None:
        self.tally = _Tally(0, stamped=False)
        self._clients: list[_Client] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._posters: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._stuck: list[_Client] = []

    def take(self, client: _Client, payload: bytes) -> None:
        at, tally = time.monotonic_ns(), self.tally
        if client.got >= tally.each:
            tally.extra += 1
            return
        client.got += 1
        tally.done += 1
        tally.first = tally.first or at
        tally.last = at
        if tally.stamped:
            stamp = payload.find(b"@") + 1
            if stamp:
                tally.latency.append(at - int(payload[stamp : stamp + _DIGITS]))
        if self.complete():
            tally.changed.set()

    def complete(self) -> bool:
        return self.tally.done >= self.tally.each * len(self._clients)

    async def connect(self, amount: int, port: int, at_once: int, deflate: int, stuck: int, *rest: str) -> Any:
        path, until, hello = ("" if word == "-" else word for word in rest)
        gate = asyncio.Semaphore(at_once)
        start = time.monotonic_ns()

        async def one(number: int) -> _Client:
            async with gate:
                client = _Client(self)
                own = path.replace("{}", str(number))
                await client.connect(port, own, until.encode(), hello.encode(), deflate=bool(deflate))
                return client

        clients = await asyncio.gather(*(one(number) for number in range(amount)))
        if stuck:
            self._stuck += clients
        else:
            self._clients += clients
            self._tasks += [asyncio.create_task(client.read()) for client in clients]
        return {
            "seconds": (time.monotonic_ns() - start) / 1e9,
            "first": _samples([client.first - client.begun for client in clients]),
            "until": _samples([client.live - client.begun for client in clients]),
        }

    async def expect(self, each: int, stamped: int) -> Any:
        self.tally = _Tally(each, stamped=bool(stamped))
        for client in self._clients:
            client.got = 0
        return {"clients": len(self._clients)}

    async def wait(self, milliseconds: int) -> Any:
        tally = self.tally
        if not self.complete():
            await asyncio.wait_for(tally.changed.wait(), milliseconds / 1000)
        return {
            "first": tally.first,
            "last": tally.last,
            "frames": tally.done,
            "bytes": tally.bytes,
            "extra": tally.extra,
            "cpu": _cpu() - tally.cpu,
            "latency": _samples(tally.latency),
        }

    async def posters(self, count: int, port: int) -> Any:
        self._port = port
        self._posters = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
        return {"posters": count}

    async def post(self, amount: int, rate: float, file: str) -> Any:
        with open(file, "rb") as source:  # noqa: ASYNC230
            request = source.read()
        before, mark, after = request.partition(b"@")
        due = iter(range(amount))
        failed = 0
        times: list[int] = []
        cpu, start = _cpu(), time.monotonic_ns()

        async def publish(index: int) -> None:
            nonlocal failed
            for number in due:
                if self._posters[index][0].at_eof():  # servers close a connection that was idle for seconds
                    self._posters[index] = await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = self._posters[index]
                begun = time.monotonic_ns()
                if rate:
                    begun = start + int(number * 1e9 / rate)
                    await asyncio.sleep((begun - time.monotonic_ns()) / 1e9)
                writer.write(b"%s@%0*d%s" % (before, _DIGITS, begun, after[_DIGITS:]) if mark else request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"\ncontent-length:")[2].split(b"\r", 1)[0] or 0))
                failed += head[9:10] != b"2"
                times.append(time.monotonic_ns() - begun)

        await asyncio.gather(*(publish(index) for index in range(len(self._posters))))
        return {
            "begun": start,
            "seconds": (time.monotonic_ns() - start) / 1e9,
            "requests": amount,
            "failed": failed,
            "cpu": _cpu() - cpu,
            "latency": _samples(times),
        }

    async def obey(self, line: str) -> Any:
        numbers, *texts = line.rstrip("\n").split("\t")
        name, *words = numbers.split(" ")
        if name == "post":
            return await self.post(int(words[0]), float(words[1]), " ".join(words[2:]))
        commands: dict[str, Any] = {
            "connect": self.connect,
            "expect": self.expect,
            "wait": self.wait,
            "posters": self.posters,
        }
        return await commands[name](*map(int, words), *texts)


async def main() -> None:
    """Run commands until stdin ends."""
    load = _Load()
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = await load.obey(line)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

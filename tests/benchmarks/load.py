"""The load client as a process: `load.c`, built on the spot, or `load_fallback.py` where there is no compiler.

Both obey the same lines on stdin, words of the last part separated by tabs, and answer each with a line of JSON:

    connect N PORT AT_ONCE DEFLATE STUCK <tab> PATH <tab> UNTIL <tab> HELLO
        N more clients, AT_ONCE of them under way at a time; each is done when it has seen a message with UNTIL in it
        ("*": any, "-": the handshake is enough). {} in the path is the client's number. HELLO is a text sent after
        the handshake. Stuck clients have a small receive buffer, and read nothing once they are done.
    expect N STAMPED     forget what was counted; from now on N messages are wanted by each client that reads
    wait MILLISECONDS    answered when all of them have come
    posters N PORT       N connections for HTTP requests, to stay
    post N RATE FILE     the request in FILE, N times: RATE a second, or (RATE 0) on each connection as answers come

A time stamp is an `@` and 19 digits: in a request that bears one it is replaced by the time when the request was due
(`time.monotonic_ns()`, the same clock in all processes), and messages that bear it are timed when they arrive.
Times in answers are microseconds or, where they are points in time, nanoseconds.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from tests import processes
from tests.benchmarks.machine import built

__all__ = ["STAMP", "Connected", "Load", "Posted", "Received", "Samples"]

STAMP = "@" + "0" * 19

_SOURCE = Path(__file__).with_name("load.c")
_T = TypeVar("_T", bound=msgspec.Struct)


class Samples(msgspec.Struct, frozen=True):
    """Microseconds."""

    count: int
    p50: float
    p99: float
    max: float


class Connected(msgspec.Struct, frozen=True):
    """How a `connect` went: `first` is the time to the handshake's end, `until` the time to the message wanted."""

    seconds: float
    first: Samples
    until: Samples


class Received(msgspec.Struct, frozen=True):
    """What came since `expect`: when the first and the last message did (ns), and the load client's own CPU seconds."""

    first: int
    last: int
    frames: int
    bytes: int
    extra: int
    cpu: float
    latency: Samples


class Posted(msgspec.Struct, frozen=True):
    """How requests went: when the first was begun (ns), and the times from due to answered."""

    begun: int
    seconds: float
    requests: int
    failed: int
    cpu: float
    latency: Samples


class _Answer(msgspec.Struct, frozen=True):
    error: str | None = None


class Load:
    """A load client; `fallback` chooses the one in Python. Every method raises RuntimeError for what went wrong."""

    def __init__(self, *, fallback: bool = False) -> None:
        program = None if fallback else built(_SOURCE)
        self.name = "C" if program else "Python"
        command = [program] if program else [sys.executable, "-m", "tests.benchmarks.load_fallback"]
        self._process = processes.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._request = tempfile.NamedTemporaryFile(prefix="bench-broadcaster-")  # noqa: SIM115
        self.clients = 0

    def connect(
        self,
        count: int,
        port: int,
        path: str,
        *,
        until: str = "",
        hello: str = "",
        at_once: int = 64,
        deflate: bool = False,
        stuck: bool = False,
    ) -> Connected:
        """Add clients."""
        line = f"connect {count} {port} {at_once} {deflate:d} {stuck:d}\t{path}\t{until or '-'}\t{hello or '-'}"
        connected = self._ask(line, Connected)
        self.clients += 0 if stuck else count
        return connected

    def expect(self, messages: int, *, stamped: bool = False) -> None:
        """Count anew."""
        self._ask(f"expect {messages} {stamped:d}", _Answer)

    def wait(self, seconds: float = 60.0) -> Received:
        """Return when everybody has everything, and nobody more than that."""
        received = self._ask(f"wait {seconds * 1000:.0f}", Received)
        if received.extra:
            raise RuntimeError(f"{received.extra} messages came that were not expected")
        return received

    def open_posters(self, count: int, port: int) -> None:
        """Connect publishers; once for each load client."""
        self._ask(f"posters {count} {port}", _Answer)

    def post(self, request: bytes, count: int = 1, *, rate: float = 0.0) -> Posted:
        """Publish, and return when all is answered."""
        self._request.seek(0)
        self._request.truncate()
        self._request.write(request)
        self._request.flush()
        posted = self._ask(f"post {count} {rate} {self._request.name}", Posted)
        if posted.failed:
            raise RuntimeError(f"{posted.failed} of {count} requests were refused")
        return posted

    def close(self) -> None:
        """End it, and with it every connection."""
        processes.end(self._process)
        self._request.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, line: str, kind: type[_T]) -> _T:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its last word says why
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        error = msgspec.json.decode(answer, type=_Answer).error if answer else "it died"
        if error is not None:
            raise RuntimeError(f"load client: {error}")
        return msgspec.json.decode(answer, type=kind)

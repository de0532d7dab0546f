"""The load client, run as a process: `load.c`, compiled on demand, or `load_fallback.py` if there is no compiler.

Both read commands from stdin, one per line, and answer each with a line of JSON:

    connect N PORT AT_ONCE DEFLATE STUCK <tab> PATH <tab> UNTIL <tab> HELLO
        Connect N more clients, at most AT_ONCE at a time. A client is connected when it has received a message that
        contains UNTIL ("*": any message, "-": after the handshake). {} in PATH is replaced by the client's number.
        HELLO is a text that is sent after the handshake. A path that begins with /events is a stream of server-sent
        events, any other a WebSocket. Stuck clients have a small receive buffer, and stop reading
        once they are connected.
    expect N STAMPED     Reset the counts; each reading client now expects N messages.
    wait MILLISECONDS    Answer when every client has received them.
    posters N PORT       Open N persistent connections for HTTP requests.
    post N RATE FILE     Send the request in FILE N times, at RATE per second, or with RATE 0 as fast as answers arrive.

A time stamp is an `@` and 19 digits. In a request it is replaced by the time at which the request was due
(`time.monotonic_ns()`, the same clock in all processes); a message that contains it is timed on arrival.
Durations in answers are in microseconds unless named `seconds`, and points in time are in nanoseconds.
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
    """A distribution of durations, in microseconds."""

    count: int
    p50: float
    p99: float
    max: float


class Connected(msgspec.Struct, frozen=True):
    """The result of `connect`: `first` is the time to the end of the handshake, `until` that to the awaited message."""

    seconds: float
    first: Samples
    until: Samples


class Received(msgspec.Struct, frozen=True):
    """The messages since `expect`: arrival of the first and the last (ns), and the CPU seconds of the load client."""

    first: int
    last: int
    frames: int
    bytes: int
    extra: int
    cpu: float
    latency: Samples


class Posted(msgspec.Struct, frozen=True):
    """The result of `post`: the start of the first request (ns), and the times from when each was due to its answer."""

    begun: int
    seconds: float
    requests: int
    failed: int
    cpu: float
    latency: Samples


class _Answer(msgspec.Struct, frozen=True):
    error: str | None = None


class Load:
    """A load client; `fallback` selects the one in Python. A method raises RuntimeError if the load client fails."""

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
        """Connect clients."""
        line = f"connect {count} {port} {at_once} {deflate:d} {stuck:d}\t{path}\t{until or '-'}\t{hello or '-'}"
        connected = self._ask(line, Connected)
        self.clients += 0 if stuck else count
        return connected

    def expect(self, messages: int, *, stamped: bool = False) -> None:
        """Reset the counts; each client now expects this many messages."""
        self._ask(f"expect {messages} {stamped:d}", _Answer)

    def wait(self, seconds: float = 60.0) -> Received:
        """Wait until every client has received all messages; raise RuntimeError if any got more."""
        received = self._ask(f"wait {seconds * 1000:.0f}", Received)
        if received.extra:
            raise RuntimeError(f"{received.extra} unexpected messages arrived")
        return received

    def open_posters(self, count: int, port: int) -> None:
        """Connect publishers; at most once for each load client."""
        self._ask(f"posters {count} {port}", _Answer)

    def post(self, request: bytes, count: int = 1, *, rate: float = 0.0) -> Posted:
        """Send a request `count` times, and return when all are answered."""
        self._request.seek(0)
        self._request.truncate()
        self._request.write(request)
        self._request.flush()
        posted = self._ask(f"post {count} {rate} {self._request.name}", Posted)
        if posted.failed:
            raise RuntimeError(f"{posted.failed} of {count} requests were refused")
        return posted

    def close(self) -> None:
        """End the load client and all its connections."""
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
        with contextlib.suppress(BrokenPipeError):  # the last line of its output says why
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        error = msgspec.json.decode(answer, type=_Answer).error if answer else "the process ended"
        if error is not None:
            raise RuntimeError(f"load client: {error}")
        return msgspec.json.decode(answer, type=kind)

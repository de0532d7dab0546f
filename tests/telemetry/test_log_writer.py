"""The log writer: lines keep their order, and a reader that stops reading blocks nobody."""

import contextlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from telemetry.log_writer import FLUSH_SECONDS, LogWriter

PIPE_BYTES = 65_536


class Pipe:
    """A pipe with a log writer at its writing end."""

    def __init__(self, max_lines: int) -> None:
        self.reader, self.end = os.pipe()
        self.writer = LogWriter(self.end, max_lines=max_lines)
        self._read = b""

    def log(self, *texts: object) -> None:
        """Log lines."""
        for text in texts:
            self.writer.handle(logging.LogRecord("a", logging.INFO, "", 0, str(text), None, None))

    def fill(self) -> int:
        """Fill the pipe, and return how many bytes it took."""
        os.set_blocking(self.end, False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                count += os.write(self.end, b"x" * PIPE_BYTES)
        os.set_blocking(self.end, True)
        return count

    def lines(self, count: int) -> list[str]:
        """Read lines."""
        while self._read.count(b"\n") < count:
            self._read += os.read(self.reader, PIPE_BYTES)
        *found, self._read = self._read.split(b"\n", count)
        return [line.decode() for line in found]


@pytest.fixture
def pipe() -> Iterator[Callable[..., Pipe]]:
    """Return a function that makes a pipe; all are closed after the test."""
    made: list[Pipe] = []

    def make(max_lines: int = 100) -> Pipe:
        made.append(Pipe(max_lines))
        return made[-1]

    yield make
    for each in made:
        each.writer.close()
        os.set_blocking(each.reader, False)
        try:
            while os.read(each.reader, PIPE_BYTES):
                time.sleep(0.01)
        except OSError:
            pass


def test_order(pipe: Callable[..., Pipe]) -> None:
    """Lines of several threads are all written, those of each thread in their order."""
    log = pipe(max_lines=10_000)
    threads = [threading.Thread(target=log.log, args=[f"{name} {number}" for number in range(1000)]) for name in "abc"]
    for thread in threads:
        thread.start()
    lines = log.lines(3000)
    for name in "abc":
        assert [line for line in lines if line.startswith(name)] == [f"{name} {number}" for number in range(1000)]
    assert log.writer.dropped == 0


def test_nobody_reads(pipe: Callable[..., Pipe]) -> None:
    """Logging to a full pipe does not block; lines are dropped, counted, and reported once the pipe is read."""
    log = pipe()
    filled = log.fill()
    begin = time.monotonic()
    texts = [f"{number:01000}" for number in range(2000)]
    log.log(*texts)
    assert time.monotonic() - begin < 5
    assert 1800 < log.writer.dropped <= 1900  # the writer holds up to 64 KiB beside the queue
    kept = 2000 - log.writer.dropped
    lines = log.lines(kept + 1)
    log.log("on")
    lines += log.lines(1)
    assert lines[0] == "x" * filled + texts[0]
    assert lines[1:kept] == [text for text in texts[1:] if text in set(lines)]
    assert lines[kept:] == [f"dropped {2000 - kept} log lines, because stderr did not accept them in time", "on"]


def test_flush(pipe: Callable[..., Pipe]) -> None:
    """A flush waits until the lines before it are written, and for a full pipe only a second."""
    log = pipe()
    log.log("first")
    log.writer.flush()
    os.set_blocking(log.reader, False)
    assert os.read(log.reader, 100) == b"first\n"
    log.log("x" * 2 * PIPE_BYTES)
    begin = time.monotonic()
    log.writer.flush()
    assert FLUSH_SECONDS <= time.monotonic() - begin < FLUSH_SECONDS + 5
    os.set_blocking(log.reader, True)
    assert len(log.lines(1)[0]) == 2 * PIPE_BYTES


def test_non_blocking(pipe: Callable[..., Pipe]) -> None:
    """A descriptor that another process made non-blocking gets every line in full."""
    log = pipe()
    os.set_blocking(log.end, False)
    log.log("x" * 3 * PIPE_BYTES, "next")
    time.sleep(0.05)
    first, second = log.lines(2)
    assert (len(first), second) == (3 * PIPE_BYTES, "next")


def test_reader_has_ended(pipe: Callable[..., Pipe]) -> None:
    """Lines that nobody can ever read are counted as dropped, and nothing fails."""
    log = pipe()
    reader, log.reader = log.reader, os.open(os.devnull, os.O_RDONLY)
    os.close(reader)
    log.log("a", "b")
    log.writer.flush()
    assert log.writer.dropped == 2


def test_fork(pipe: Callable[..., Pipe]) -> None:
    """A process that was forked writes its lines too."""
    log = pipe()
    log.log("parent")
    log.writer.flush()

    def child() -> None:
        log.log("child")
        log.writer.flush()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert log.lines(2) == ["parent", "child"]

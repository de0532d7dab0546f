"""Writes log lines to a file descriptor on a thread of its own, so that a reader that stops reading blocks nobody.

Theory of operation. A log line is formatted by the thread that logs it, and put into a queue of at most MAX_LINES. The
writer thread takes lines from the queue in their order and writes them; it alone blocks when the descriptor, such as a
pipe that nobody reads, accepts no data. Lines that find the queue full are dropped and counted. When the writer can
write again, it adds a line with their number.

`flush` waits until the lines before it are written, FLUSH_SECONDS at most; Python calls it at exit. The thread is a
daemon, so that a blocked write does not keep the process from ending. It writes to the descriptor itself: a blocked
`sys.stderr.write` would hold the lock of that stream, and Python aborts if it cannot take this lock at exit.
"""

import logging
import os
import select
import signal
import threading
from queue import Empty, SimpleQueue
from typing import Final

__all__ = ["FLUSH_SECONDS", "MAX_LINES", "LogWriter"]

MAX_LINES: Final = 10_000
"""Maximum number of lines that wait to be written."""

FLUSH_SECONDS: Final = 1.0
"""How long `flush` waits at most."""

_WRITE_BYTES: Final = 64 * 1024  # joined into one write at most
_RETRY_SECONDS: Final = 1.0

_logger = logging.getLogger(__name__)


class LogWriter(logging.Handler):
    """A logging handler that writes lines to the descriptor `fd`, and never blocks the thread that logs.

    `dropped` is the number of lines that were not written.
    """

    def __init__(self, fd: int, *, max_lines: int = MAX_LINES) -> None:
        super().__init__()
        self.dropped = 0
        self._fd = fd
        self._max_lines = max_lines
        self._start()
        os.register_at_fork(after_in_child=self._start)  # threads do not survive a fork

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record, or drop it if too many lines wait."""
        if self._queue.qsize() >= self._max_lines:
            self.dropped += 1
            return
        try:
            line = self.format(record)
        except Exception:  # wrong arguments of a logging call; logging itself would print them to stderr
            self._add_line("a log entry of %s:%d cannot be formatted", record.pathname, record.lineno)
        else:
            self._queue.put(line.encode(errors="backslashreplace") + b"\n")

    def flush(self) -> None:
        """Wait until the lines logged so far are written, or for FLUSH_SECONDS."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(FLUSH_SECONDS)

    def close(self) -> None:
        """End the thread after the lines logged so far."""
        self._queue.put(None)
        super().close()

    def _start(self) -> None:
        self._queue: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        threading.Thread(target=self._run, args=(self._queue,), name="log writer", daemon=True).start()

    def _run(self, queue: "SimpleQueue[bytes | threading.Event | None]") -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
        reported = self.dropped
        closed = False
        while not closed:
            lines, flushed, closed = _next_lines(queue)
            written = self._write(lines)
            if flushed is not None:
                flushed.set()
            if written and self.dropped > reported and queue.qsize() < self._max_lines // 2:
                reported, count = self.dropped, self.dropped - reported
                self._add_line("dropped %d log lines, because stderr did not accept them in time", count)

    def _add_line(self, text: str, *args: object) -> None:
        """Queue a line of this module; logging it would take the handler's lock, which `flush` holds at exit."""
        record = _logger.makeRecord(_logger.name, logging.WARNING, "", 0, text, args, None)
        self._queue.put(self.format(record).encode() + b"\n")

    def _write(self, lines: list[bytes]) -> bool:
        """Write lines, and return True unless they had to be dropped."""
        rest = b"".join(lines)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another process made the descriptor non-blocking
                select.select([], [self._fd], [], _RETRY_SECONDS)
            except OSError:  # the disk is full, or the reader of the pipe has ended
                self.dropped += rest.count(b"\n")
                return False
        return True


def _next_lines(
    queue: "SimpleQueue[bytes | threading.Event | None]",
) -> tuple[list[bytes], threading.Event | None, bool]:
    """Wait for lines, and return those that wait already; then a flush that came after them, and True at the end."""
    lines: list[bytes] = []
    size = 0
    item = queue.get()
    while isinstance(item, bytes):
        lines.append(item)
        size += len(item)
        if size >= _WRITE_BYTES:
            return lines, None, False
        try:
            item = queue.get_nowait()
        except Empty:
            return lines, None, False
    return lines, item, item is None

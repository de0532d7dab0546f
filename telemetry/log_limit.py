"""Limits the log lines that any client can cause, such as those about invalid requests, to one a minute."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

__all__ = ["LIMIT_SECONDS", "OncePerMinute"]

LIMIT_SECONDS: Final = 60.0
"""The shortest time between two lines of one kind."""

_MAX_KINDS: Final = 100


class _Kind:
    """The lines of one kind: when the last one was logged, and how many were left out since."""

    __slots__ = ("last", "left_out", "timer")

    def __init__(self) -> None:
        self.last = float("-inf")
        self.left_out = 0
        self.timer: asyncio.TimerHandle | None = None


class OncePerMinute(logging.Filter):
    """A filter for a logger whose lines any client can cause without limit.

    Lines are of one kind if they have the same text before its arguments are put in, the same first `distinct`
    arguments, and the same class of exception. The first one is logged at once. Those that follow within a minute are
    counted; then the newest is logged with their number. DEBUG lines are not limited.
    """

    def __init__(self, *, distinct: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._distinct = distinct
        self._clock = clock
        self._kinds: dict[tuple[Any, ...], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the line is to be logged now."""
        if record.levelno <= logging.DEBUG:
            return True
        kind = self._kind_of(record)
        now = self._clock()
        if now - kind.last >= LIMIT_SECONDS:
            self._admit(kind, record, now)
            return True
        kind.left_out += 1
        if kind.timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # not on an event loop: the next line of this kind has the number
                return False
            kind.timer = loop.call_later(kind.last + LIMIT_SECONDS - now, self._report, kind, record)
        return False

    def _admit(self, kind: _Kind, record: logging.LogRecord, now: float) -> None:
        if kind.left_out:
            record.msg, record.args = f"{record.getMessage()} (and {kind.left_out} more in the last minute)", None
        if kind.timer is not None:
            kind.timer.cancel()
        kind.last, kind.left_out, kind.timer = now, 0, None

    def _report(self, kind: _Kind, record: logging.LogRecord) -> None:
        """Log the lines that were left out as one; nothing new was logged meanwhile."""
        kind.timer = None
        count, kind.left_out, kind.last = kind.left_out, 0, self._clock()
        record.msg, record.args = f"{record.getMessage()} ({count} times in the last minute)", None
        record.created = time.time()
        logging.getLogger(record.name).callHandlers(record)

    def _kind_of(self, record: logging.LogRecord) -> _Kind:
        arguments = record.args if isinstance(record.args, tuple) else ()
        error = record.exc_info[0] if record.exc_info else None
        key: tuple[Any, ...] = (record.levelno, str(record.msg), arguments[: self._distinct], error)
        if key not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            key = ()  # too many kinds to tell apart
        return self._kinds.setdefault(key, _Kind())

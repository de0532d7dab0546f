"""Log output: one line per entry, as text or JSON, with the ids of the current span. Never a payload or credential.

A thread writes the lines (log_writer.py), and lines that any client can cause are limited (log_limit.py).
"""

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime

from opentelemetry.trace import get_current_span

from telemetry.log_limit import OncePerMinute
from telemetry.log_writer import LogWriter

__all__ = ["configure_logging", "dropped_lines"]

# Loggers of libraries with lines that any client can cause.
_LIMITED = ("uvicorn.error", "websockets", "websockets.server", "asyncio")

_MAX_CHAINED = 10

_writers: list[LogWriter] = []


class _Text(logging.Formatter):
    """Text: `2026-01-31T12:00:00.000Z INFO kernel.resilience.link: message`, then the trace and span id, if any."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        ids = _ids()
        if ids:
            line += f" [trace_id={ids['trace_id']} span_id={ids['span_id']}]"
        if record.exc_info:
            line += " | " + " | ".join(_traceback(record.exc_info[1]).splitlines())
        # A message may contain line breaks.
        return " ".join(line.splitlines())


class _Json(logging.Formatter):
    """JSON: `time`, `level`, `logger`, `message`; `trace_id` and `span_id` within a span; `error` with an exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": _time(record), "level": record.levelname, "logger": record.name, **_ids()}
        entry["message"] = record.getMessage()
        if record.exc_info:
            entry["error"] = _traceback(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(level: str, format: str, limited: Mapping[str, int] | None = None) -> None:
    """Send every log line of this process to stderr, including Python's warnings; `format` is "text" or "json".

    `limited` names further loggers with lines that any client can cause. Its values are the `distinct` arguments of
    `OncePerMinute`.
    """
    root = logging.getLogger()
    root.handlers.clear()
    for old in _writers:
        old.close()
    if sys.__stderr__ is None:  # it was closed before the start
        root.addHandler(logging.NullHandler())
    else:
        writer = LogWriter(sys.__stderr__.fileno())
        writer.setFormatter(_Json() if format == "json" else _Text())
        root.addHandler(writer)
        _writers[:] = [writer]
    root.setLevel(level)
    for name, distinct in (dict.fromkeys(_LIMITED, 0) | dict(limited or {})).items():
        logger = logging.getLogger(name)
        logger.filters[:] = [each for each in logger.filters if not isinstance(each, OncePerMinute)]
        logger.addFilter(OncePerMinute(distinct=distinct))
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def dropped_lines() -> int:
    """Return how many log lines were not written, because stderr did not accept them."""
    return sum(writer.dropped for writer in _writers)


def _traceback(error: BaseException | None) -> str:
    """Return the places and classes of an exception and of those that caused it.

    Their texts are left out, because they may quote what a client has sent, except those of the operating system.
    """
    parts: list[str] = []
    while error is not None and len(parts) < _MAX_CHAINED:
        text = f": {error}" if isinstance(error, OSError) else ""
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}{text}\n")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nThe above exception led to another:\n\n".join(reversed(parts)).rstrip("\n")


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ids() -> dict[str, str]:
    context = get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

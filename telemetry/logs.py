"""Log output: one line per entry, as text or JSON, with the ids of the current span. Never a payload or credential."""

import json
import logging
from datetime import UTC, datetime

from opentelemetry.trace import get_current_span

__all__ = ["configure_logging"]


class _Text(logging.Formatter):
    """Text: `2026-01-31T12:00:00.000Z INFO kernel.resilience.link: message`, then the trace and span id, if any."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        ids = _ids()
        if ids:
            line += f" [trace_id={ids['trace_id']} span_id={ids['span_id']}]"
        if record.exc_info:
            line += " | " + " | ".join(self.formatException(record.exc_info).splitlines())
        # A message may contain line breaks.
        return " ".join(line.splitlines())


class _Json(logging.Formatter):
    """JSON: `time`, `level`, `logger`, `message`; `trace_id` and `span_id` within a span; `error` with an exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": _time(record), "level": record.levelname, "logger": record.name, **_ids()}
        entry["message"] = record.getMessage()
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(level: str, format: str) -> None:
    """Send every log line of this process to stderr, including Python's warnings; `format` is "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if format == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ids() -> dict[str, str]:
    context = get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

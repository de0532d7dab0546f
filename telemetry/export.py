"""How spans and metrics leave: on threads of their own, with one word when they cannot, in a bounded time at the end.

A collector that is away must cost the service nothing: what cannot be exported is dropped.
"""

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from telemetry.metrics import Meter

__all__ = ["Patience", "PatientSpans", "Pump", "quieten", "unfinished"]

_logger = logging.getLogger(__name__)

_K = TypeVar("_K")


def quieten() -> None:
    """Nothing but our own word about a collector that does not take what it is sent, and one about lost spans."""
    # with the HTTP client below, whose lines have the whole URL
    for name in ("opentelemetry.exporter", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [_Reasons(logging.WARNING)]
        logger.propagate = False
    logging.getLogger("opentelemetry.sdk._shared_internal").addFilter(_Once())


class _Reasons(logging.Handler):
    """Keeps the first complaint of the export that is under way on this thread: what follows are only the retries."""

    _first = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, on one line and without what may be a credential: the query of the collector's URL."""
        self._first.text = self._text() or re.sub(r"\?\S+", "?***", " ".join(record.getMessage().split()))

    @classmethod
    def taken(cls) -> str:
        """The complaint, once."""
        text = cls._text()
        cls._first.text = ""
        return text

    @classmethod
    def _text(cls) -> str:
        return getattr(cls._first, "text", "")


class _Once(logging.Filter):
    """Lets each kind of line through once."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[object] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is the first of its kind."""
        new = record.msg not in self._seen
        self._seen.add(record.msg)
        return new


class Patience:
    """One warning when exports begin to fail, one line when they succeed again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failing = False

    def note(self, succeeded: bool, reason: str) -> None:
        """Note how an export went."""
        if succeeded and self._failing:
            _logger.info("%s are exported again", self._what)
        elif not succeeded and not self._failing:
            _logger.warning("%s cannot be exported, nothing else depends on it: %s", self._what, reason)
        self._failing = not succeeded


class PatientSpans(SpanExporter):
    """An exporter whose failures are said once."""

    def __init__(self, inner: SpanExporter, patience: Patience) -> None:
        self._inner = inner
        self._patience = patience

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Pass them on."""
        result = self._inner.export(spans)
        self._patience.note(result is SpanExportResult.SUCCESS, _Reasons.taken())
        return result

    def shutdown(self) -> None:
        """End it."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Pass it on."""
        return self._inner.force_flush(timeout_millis)


class Pump:
    """Exports all metrics every `interval` seconds, on a thread, and once more at the end."""

    def __init__(self, exporter: MetricExporter, meter: Meter, interval: float, patience: Patience) -> None:
        self._exporter = exporter
        self._meter = meter
        self._interval = interval
        self._patience = patience
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="telemetry metrics")
        self._thread.start()

    def stop(self) -> None:
        """Export for the last time; blocks until that is done."""
        self._ended.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(self._interval)
            data: MetricsData = self._meter.data()
            try:
                succeeded, reason = self._exporter.export(data) is MetricExportResult.SUCCESS, _Reasons.taken()
            except Exception as error:  # an exporter's mistake must not end the thread
                succeeded, reason = False, type(error).__name__
            self._patience.note(succeeded, reason)


async def unfinished(ends: Mapping[_K, Callable[[], None]], seconds: float) -> set[_K]:
    """Make these blocking calls, each on a thread that nobody waits for at exit; those not done in so many seconds."""
    loop = asyncio.get_running_loop()
    left = set(ends)
    done = asyncio.Event()

    def finished(key: _K) -> None:
        left.discard(key)
        if not left:
            done.set()

    def run(key: _K, end: Callable[[], None]) -> None:
        try:
            end()
        finally:
            with contextlib.suppress(RuntimeError):  # too late: the loop is closed
                loop.call_soon_threadsafe(finished, key)

    for key, end in ends.items():
        threading.Thread(target=run, args=(key, end), daemon=True, name="telemetry flush").start()
    if ends:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await done.wait()
    return left

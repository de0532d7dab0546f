"""Exports spans and metrics on background threads, logs an outage once, and bounds the time of the last export.

A collector that is unavailable must not affect the service: spans that cannot be exported are dropped. Metrics are
cumulative, so the next successful export includes them.
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

__all__ = ["ExportHealth", "PeriodicExport", "ReportingSpanExporter", "quieten", "unfinished"]

_logger = logging.getLogger(__name__)

_K = TypeVar("_K")


def quieten() -> None:
    """Silence the exporters' own log lines, which `ExportHealth` replaces, and log each line of the SDK only once."""
    # urllib3, the HTTP client of the exporters, logs whole URLs.
    for name in ("opentelemetry.exporter", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [_Reasons(logging.WARNING)]
        logger.propagate = False
    logging.getLogger("opentelemetry.sdk._shared_internal").addFilter(_Once())


class _Reasons(logging.Handler):
    """Keeps the first error line of the export in progress on this thread; the lines after it are only its retries."""

    _first = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text on one line, without the query of the collector's URL, which may hold a credential."""
        self._first.text = self._text() or re.sub(r"\?\S+", "?***", " ".join(record.getMessage().split()))

    @classmethod
    def taken(cls) -> str:
        """Return the kept text and forget it; "" if there is none."""
        text = cls._text()
        cls._first.text = ""
        return text

    @classmethod
    def _text(cls) -> str:
        return getattr(cls._first, "text", "")


class _Once(logging.Filter):
    """Lets each log message through once, whatever its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[object] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for the first record with this message."""
        new = record.msg not in self._seen
        self._seen.add(record.msg)
        return new


class ExportHealth:
    """Logs one warning when exports start to fail, and one line when they succeed again.

    `signal` is "spans" or "metrics".
    """

    def __init__(self, signal: str) -> None:
        self._signal = signal
        self._failing = False

    def note(self, succeeded: bool, reason: str) -> None:
        """Record the outcome of an export; `reason` says why it failed."""
        if succeeded and self._failing:
            _logger.info("%s are exported again", self._signal)
        elif not succeeded and not self._failing:
            _logger.warning(
                "%s cannot be exported, the service is not affected; check the collector: %s",
                self._signal,
                reason,
            )
        self._failing = not succeeded


class ReportingSpanExporter(SpanExporter):
    """A span exporter that reports the outcome of each export to an `ExportHealth`."""

    def __init__(self, inner: SpanExporter, health: ExportHealth) -> None:
        self._inner = inner
        self._health = health

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the spans and report the outcome."""
        result = self._inner.export(spans)
        self._health.note(result is SpanExportResult.SUCCESS, _Reasons.taken())
        return result

    def shutdown(self) -> None:
        """Shut down the wrapped exporter."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the wrapped exporter."""
        return self._inner.force_flush(timeout_millis)


class PeriodicExport:
    """Exports all metrics every `interval` seconds on a thread of its own, and a last time in `stop`."""

    def __init__(self, exporter: MetricExporter, meter: Meter, interval: float, health: ExportHealth) -> None:
        self._exporter = exporter
        self._meter = meter
        self._interval = interval
        self._health = health
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="telemetry metrics")
        self._thread.start()

    def stop(self) -> None:
        """Export a last time and end the thread; blocks until both are done."""
        self._ended.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(self._interval)
            try:
                data: MetricsData = self._meter.data()
                succeeded, reason = self._exporter.export(data) is MetricExportResult.SUCCESS, _Reasons.taken()
            except Exception as error:  # a bug in an exporter or a metric must not end the thread
                succeeded, reason = False, type(error).__name__
            self._health.note(succeeded, reason)


async def unfinished(ends: Mapping[_K, Callable[[], None]], seconds: float) -> set[_K]:
    """Run blocking calls, each on a daemon thread, for at most `seconds`; return the keys of those not done by then."""
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
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(finished, key)

    for key, end in ends.items():
        threading.Thread(target=run, args=(key, end), daemon=True, name="telemetry flush").start()
    if ends:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await done.wait()
    return left

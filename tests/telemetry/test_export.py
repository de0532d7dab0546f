"""The periodic export of metrics: a failure is logged once and does not end it."""

import logging
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from telemetry.export import ExportHealth, PeriodicExport
from telemetry.metrics import Meter
from tests.waiting import eventually

DATA = MetricsData([])


class Exporter(MetricExporter):
    """Keeps what it is given; the first export fails with the error, if there is one."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error
        self.given: list[MetricsData] = []

    def export(self, metrics_data: MetricsData, timeout_millis: float = 0, **_: Any) -> MetricExportResult:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.given.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **_: Any) -> None:
        return None


class BrokenMeter(Meter):
    """A meter that fails once."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def data(self) -> MetricsData:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return DATA


@pytest.mark.parametrize("where", ["meter", "exporter"])
async def test_goes_on_after_a_bug(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """If metrics cannot be collected or exported once, this is logged, and the next interval exports them."""
    caplog.set_level(logging.INFO)
    bug = RuntimeError("secret")
    exporter = Exporter(bug if where == "exporter" else None)
    export = PeriodicExport(exporter, BrokenMeter(bug if where == "meter" else None), 0.01, ExportHealth("metrics"))
    await eventually(lambda: exporter.given)
    export.stop()
    assert exporter.given[0] is DATA
    first, second, *_ = [record.getMessage() for record in caplog.records]
    assert first.endswith(": RuntimeError")
    assert second == "metrics are exported again"
    assert "secret" not in caplog.text

"""Traces, metrics and logs for operators; a log line within a trace has the ids of its trace and span.

OpenTelemetry is used in this package alone. The kernel only calls observers, and does not depend on this package.
"""

import telemetry.environment  # noqa: F401  must run before anything imports OpenTelemetry
from telemetry.logs import configure_logging
from telemetry.metrics import METRICS, Exposition
from telemetry.setup import FLUSH_SECONDS, Telemetry

__all__ = ["FLUSH_SECONDS", "METRICS", "Exposition", "Telemetry", "configure_logging"]

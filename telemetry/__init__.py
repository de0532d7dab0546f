"""What operators see: traces, metrics, and logs with the ids of the trace that they belong to.

Everything about OpenTelemetry is in here; the kernel only has an observer, and does not know who watches.
"""

import telemetry.environment  # noqa: F401  before anything imports OpenTelemetry
from telemetry.logs import configure_logging
from telemetry.metrics import METRICS, Exposition
from telemetry.setup import FLUSH_SECONDS, Telemetry

__all__ = ["FLUSH_SECONDS", "METRICS", "Exposition", "Telemetry", "configure_logging"]

"""What operators see: logs now, with the ids of the trace that they belong to. Configured by settings and `OTEL_*`."""

from telemetry.logs import configure_logging

__all__ = ["configure_logging"]

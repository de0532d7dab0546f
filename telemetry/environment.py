"""Corrects the environment before OpenTelemetry is imported. Import this module first: importing it is the call."""

import os
from importlib.metadata import entry_points
from typing import Final

__all__ = ["UNKNOWN_PROPAGATORS"]

_STABLE: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"


def _leave_out_unknown_propagators() -> list[str]:
    """Remove propagators that are not installed from `OTEL_PROPAGATORS`, and return their names.

    `opentelemetry.propagate` raises an error for them at import, even while tracing is off, although the specification
    says to ignore them. On Kubernetes, an operator may set the same list for every service.
    """
    given = os.environ.get("OTEL_PROPAGATORS", "").strip()
    names = [name.strip() for name in given.split(",") if name.strip()]
    known = {point.name for point in entry_points(group="opentelemetry_propagator")} if names else set()
    unknown = [name for name in names if name not in known and name.lower() != "none"]
    if unknown:
        # An empty value would mean the default propagators.
        os.environ["OTEL_PROPAGATORS"] = ",".join(name for name in names if name not in unknown) or "none"
    return unknown


def _prefer_stable_names() -> None:
    """Let spans of Redis have the stable names of the database conventions, unless the operator has chosen.

    The instrumentation takes `server.address` and `server.port` from the conventions for HTTP.
    """
    os.environ.setdefault(_STABLE, "database,http")


_prefer_stable_names()
UNKNOWN_PROPAGATORS: Final = _leave_out_unknown_propagators()

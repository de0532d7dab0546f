"""What has to be right in the environment before OpenTelemetry is imported; importing this first sees to it."""

import os
from importlib.metadata import entry_points
from typing import Final

__all__ = ["UNKNOWN_PROPAGATORS"]


def _leave_out_unknown_propagators() -> list[str]:
    """Take names that nothing installed answers to out of `OTEL_PROPAGATORS`.

    Importing `opentelemetry.propagate` raises for them, traced or not; the specification wants them ignored. On
    Kubernetes they come from an operator that sets one list for every service.
    """
    given = os.environ.get("OTEL_PROPAGATORS", "").strip()
    names = [name.strip() for name in given.split(",") if name.strip()]
    known = {point.name for point in entry_points(group="opentelemetry_propagator")} if names else set()
    unknown = [name for name in names if name not in known and name.lower() != "none"]
    if unknown:
        # none left means none, not the default
        os.environ["OTEL_PROPAGATORS"] = ",".join(name for name in names if name not in unknown) or "none"
    return unknown


UNKNOWN_PROPAGATORS: Final = _leave_out_unknown_propagators()

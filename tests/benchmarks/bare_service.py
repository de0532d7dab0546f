"""This service without telemetry: no traces, no counters, no measurement of the event-loop delay.

Run like `python -m handlers`. It is the baseline for the cost of tracing that is switched off.
"""

import sys
from types import SimpleNamespace
from typing import Any

from handlers import app
from handlers.__main__ import main
from kernel import Observer, broadcaster
from kernel.counters import Counters


class _FrozenCounters(Counters):
    """Counters that do not count."""


async def _stop() -> None:
    pass


def _no_telemetry(*_: Any, **__: Any) -> SimpleNamespace:
    return SimpleNamespace(observers=[], middleware=[], after_exception=[], start=lambda _: None, stop=_stop)


if __name__ == "__main__":
    for name, hook in vars(Observer).items():
        if not name.startswith("_"):
            setattr(_FrozenCounters, name, hook)
    broadcaster.Counters = _FrozenCounters  # type: ignore
    app.Telemetry = _no_telemetry  # type: ignore
    sys.exit(main())

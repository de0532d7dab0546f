"""This service without any telemetry: no traces, no counters, nobody who watches the loop.

Run like `python -m handlers`. What tracing costs while it is off is seen beside this.
"""

import sys
from types import SimpleNamespace
from typing import Any

from handlers import app
from handlers.__main__ import main
from kernel import Observer, broadcaster
from kernel.counters import Counters


class _Unmoved(Counters):
    """Numbers that stay as they are."""


async def _stop() -> None:
    pass


def _no_telemetry(*_: Any, **__: Any) -> SimpleNamespace:
    return SimpleNamespace(observers=[], middleware=[], start=lambda _: None, stop=_stop)


if __name__ == "__main__":
    for name, hook in vars(Observer).items():
        if not name.startswith("_"):
            setattr(_Unmoved, name, hook)
    broadcaster.Counters = _Unmoved  # type: ignore
    app.Telemetry = _no_telemetry  # type: ignore
    sys.exit(main())

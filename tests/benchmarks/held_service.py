"""This service with a probe that measures the longest time for which the event loop was blocked.

Run like `python -m handlers`. On SIGUSR1 it writes the longest time since the last signal, in milliseconds, to the file
`HELD_FILE`. The probe measures the CPU time of the thread, so that other processes on a shared core do not count.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from handlers.__main__ import main

_STEP = 0.001  # seconds; the resolution of libuv's timers
_run = uvloop.run


async def _probe(file: Path) -> None:
    worst = 0.0

    def report() -> None:
        nonlocal worst
        file.write_text(f"{worst * 1000:.3f}")
        worst = 0.0

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, report)
    while True:
        before = time.thread_time()
        await asyncio.sleep(_STEP)
        # Shorter iterations of the loop may have preceded the longest one, so a step is subtracted.
        worst = max(worst, time.thread_time() - before - _STEP)


async def _with_probe(service: Coroutine[Any, Any, int]) -> int:
    probe = asyncio.create_task(_probe(Path(os.environ["HELD_FILE"])))
    try:
        return await service
    finally:
        probe.cancel()


if __name__ == "__main__":
    uvloop.run = lambda service: _run(_with_probe(service))  # type: ignore
    sys.exit(main())

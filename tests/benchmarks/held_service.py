"""This service with a probe in it: for how long at most the event loop did not turn.

Run like `python -m handlers`; on SIGUSR1 it writes the milliseconds since the last time into the file `HELD_FILE`.
It is the thread's CPU time that counts: what other processes take from a shared core is not the loop's doing.
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

_STEP = 0.001  # seconds: the timers of libuv are no finer
_run = uvloop.run


async def _probe(file: Path) -> None:
    worst = 0.0

    def tell() -> None:
        nonlocal worst
        file.write_text(f"{worst * 1000:.3f}")
        worst = 0.0

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
    while True:
        before = time.thread_time()
        await asyncio.sleep(_STEP)
        # turns of less than a step may have come before the one that counts
        worst = max(worst, time.thread_time() - before - _STEP)


async def _both(service: Coroutine[Any, Any, int]) -> int:
    probe = asyncio.create_task(_probe(Path(os.environ["HELD_FILE"])))
    try:
        return await service
    finally:
        probe.cancel()


if __name__ == "__main__":
    uvloop.run = lambda service: _run(_both(service))  # type: ignore
    sys.exit(main())

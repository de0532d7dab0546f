"""Drain: notify and close every client before the service stops.

The closes are spread over time, so that the clients do not all reconnect at once.
"""

import asyncio
import time
from collections.abc import Callable

from kernel.clients.client import Client
from kernel.clients.close_reasons import GOING_AWAY
from kernel.clients.pace import Pace
from kernel.messages.control import Shutdown

__all__ = ["drain"]


async def drain(clients: list[Client], seconds: float, *, timer: Callable[[], float] = time.perf_counter) -> None:
    """Notify every client of its close, and close it then; the closes are spread evenly over `seconds`.

    A client gets its events until its own close. Clients that reconnect at the notice and clients that wait for the
    close are spread alike. `timer()`, by which long work hands the loop back, is in seconds on any clock.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    pace = Pace(timer)
    step = seconds / len(clients) if clients else 0.0
    for number, client in enumerate(clients, 1):
        client.notify(Shutdown.within(round(number * step * 1000)))
        if pace.over:
            await asyncio.sleep(0)
            pace.restart()
    for number, client in enumerate(clients, 1):
        pause = begin + number * step - loop.time()
        if pause > 0 or pace.over:
            await asyncio.sleep(max(0.0, pause))
            pace.restart()
        if client.notices.pop(Shutdown, None) is not None:
            client.tell(Shutdown.within(0))  # its socket has been full all the time; it is told right before the close
        client.close(GOING_AWAY)

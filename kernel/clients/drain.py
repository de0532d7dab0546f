"""Letting clients go before the end: told, and closed, spread over time so that they do not all come back at once."""

import asyncio

from kernel.clients.client import Client
from kernel.clients.close_reasons import GOING_AWAY
from kernel.messages.control import Shutdown

__all__ = ["drain"]

_AT_ONCE = 400


async def drain(clients: list[Client], seconds: float) -> None:
    """Tell every client when it will be closed, one after the other over `seconds`, and close it then.

    Events go on to each until its own close. Who acts on the notice and who waits for the close are spread alike.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    step = seconds / len(clients) if clients else 0.0
    for number, client in enumerate(clients, 1):
        client.notify(Shutdown.within(round(number * step * 1000)))
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    for number, client in enumerate(clients, 1):
        pause = begin + number * step - loop.time()
        if pause > 0 or number % _AT_ONCE == 0:
            await asyncio.sleep(max(0.0, pause))
        if client.notices.pop(Shutdown, None) is not None:
            client.tell(Shutdown.within(0))  # its socket is full to the end, but every client is told
        client.sink.close(GOING_AWAY)

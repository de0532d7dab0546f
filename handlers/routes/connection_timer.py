"""The timer of one connection: heartbeats, idle timeout and greatest age.

One timer handle serves all three; it is always set to the earliest of them. A client that is blocked (it accepts no
data) is not read, so it does not count as idle, and it gets no heartbeats.
"""

import asyncio
import math
import random

from kernel import EventBroadcaster
from kernel.clients import IDLE_TIMEOUT, MAX_AGE, Client

__all__ = ["ConnectionTimer", "varied"]


def varied(seconds: float) -> float:
    """Vary a time by 20 % at random, so that clients that connected at the same time do not all reconnect together."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311  not a secret


class ConnectionTimer:
    """Sends heartbeats to one client, and closes its connection when it is idle or too old.

    It starts at once and runs until `stop()` or until it closes the connection. Times are in seconds; 0 for `max_age`
    and `math.inf` for `idle_timeout` mean no limit.
    """

    def __init__(
        self,
        broadcaster: EventBroadcaster,
        client: Client,
        *,
        interval: float,
        idle_timeout: float = math.inf,
        max_age: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._hub = broadcaster.hub
        self._client = client
        self._loop = loop
        self._interval = interval
        self._idle_timeout = idle_timeout
        now = self._last_message_at = self._loop.time()
        self._heartbeat_at = now + self._interval
        self._close_at = now + max_age if max_age else math.inf
        self._timer = self._schedule()

    def message_received(self) -> None:
        """Restart the idle timeout: the client has sent a message."""
        self._last_message_at = self._loop.time()

    def stop(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def _schedule(self) -> asyncio.TimerHandle:
        idle_at = self._last_message_at + self._idle_timeout
        return self._loop.call_at(min(self._heartbeat_at, idle_at, self._close_at), self._expired)

    def _expired(self) -> None:
        now = self._loop.time()
        sink = self._client.sink
        if sink.blocked:
            self._last_message_at = now
        if now >= self._close_at:
            self._client.close(MAX_AGE)
            return
        if now >= self._last_message_at + self._idle_timeout:
            self._client.close(IDLE_TIMEOUT)
            return
        if now >= self._heartbeat_at:
            if not sink.blocked:
                self._hub.heartbeat(self._client)
            self._heartbeat_at = now + self._interval
        self._timer = self._schedule()

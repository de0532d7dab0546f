"""The timer of one WebSocket connection: heartbeats, idle timeout and greatest age.

One timer handle serves all three; it is always set to the earliest of them. A client that is blocked (it accepts no
data) is not read, so it does not count as idle, and it gets no heartbeats.
"""

import asyncio
import math

from handlers.settings import Settings
from kernel import EventBroadcaster
from kernel.clients import GOING_AWAY, IDLE_TIMEOUT, Client

__all__ = ["ConnectionTimer"]


class ConnectionTimer:
    """Sends heartbeats to one client, and closes its connection when it is idle or too old.

    It starts at once and runs until `stop()` or until it closes the connection. `max_age` is in seconds; 0 means no
    limit.
    """

    def __init__(
        self,
        broadcaster: EventBroadcaster,
        client: Client,
        settings: Settings,
        *,
        max_age: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._hub = broadcaster.hub
        self._client = client
        self._loop = loop
        self._interval = settings.websocket_ping_interval_seconds
        self._idle_timeout = settings.websocket_idle_timeout_seconds
        now = self._last_message_at = loop.time()
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
            sink.close(GOING_AWAY)
            return
        if now >= self._last_message_at + self._idle_timeout:
            sink.close(IDLE_TIMEOUT)
            return
        if now >= self._heartbeat_at:
            if not sink.blocked:
                self._hub.heartbeat(self._client)
            self._heartbeat_at = now + self._interval
        self._timer = self._schedule()

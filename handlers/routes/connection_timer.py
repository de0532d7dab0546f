"""The timer of a WebSocket connection."""

import asyncio
import random

from handlers.settings import Settings
from kernel import EventBroadcaster
from kernel.clients import GOING_AWAY, IDLE_TIMEOUT, Client

__all__ = ["ConnectionTimer"]


class ConnectionTimer:
    """One connection's heartbeats, idle timeout and greatest age, on one timer."""

    def __init__(self, broadcaster: EventBroadcaster, client: Client, settings: Settings) -> None:
        self._hub = broadcaster.hub
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._interval = settings.websocket_ping_interval_seconds
        self._idle = settings.websocket_idle_timeout_seconds
        now = self.heard_at = self._loop.time()
        self._beat_at = now + self._interval
        age = settings.websocket_max_age_seconds * random.uniform(0.8, 1.2)  # noqa: S311  spreads reconnects
        self._end_at = now + age if age else float("inf")
        self._timer = self._set()

    def heard(self) -> None:
        """Note that the client has sent something."""
        self.heard_at = self._loop.time()

    def stop(self) -> None:
        """End the timer."""
        self._timer.cancel()

    def _set(self) -> asyncio.TimerHandle:
        return self._loop.call_at(min(self._beat_at, self.heard_at + self._idle, self._end_at), self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        sink = self._client.sink
        if sink.blocked:
            # not read, so not silent; and nothing is sent on top
            self.heard_at = now
        if now >= self._end_at:
            sink.close(GOING_AWAY)
            return
        if now >= self.heard_at + self._idle:
            sink.close(IDLE_TIMEOUT)
            return
        if now >= self._beat_at:
            if not sink.blocked:
                self._hub.heartbeat(self._client)
            self._beat_at = now + self._interval
        self._timer = self._set()

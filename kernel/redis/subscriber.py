"""The connection of one subscription, kept in use by pings.

A proxy between this replica and Redis closes a connection that it takes for idle, which a subscription is in one
direction always, and in the other while nothing is published. Some do so after a few seconds.
"""

from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from kernel.errors import TransportUnavailable
from kernel.redis.failures import describe

__all__ = ["BROKEN", "PING_SECONDS", "Subscriber"]

PING_SECONDS: Final = 3.0
"""The time between two pings: below the 4 s after which some proxies close an idle connection."""

BROKEN: Final = (RedisError, OSError, RuntimeError, AttributeError)
"""What a call of redis-py may raise.

uvloop raises RuntimeError for a closed transport; redis-py raises AttributeError if a connection is dropped while it is
being established.
"""


class Subscriber:
    """A subscription of redis-py to one channel; `now` is the time in seconds, on any clock."""

    def __init__(self, pubsub: Any, now: float) -> None:  # noqa: ANN401  redis-py's pub/sub is untyped
        self._pubsub = pubsub
        self._pinged_at = now
        self._unanswered = 0

    async def confirm(self, timeout: float) -> None:
        """Wait for the confirmation of the subscription."""
        confirmed = await self._message(timeout)
        if confirmed is None or confirmed["type"] != "subscribe":
            raise TransportUnavailable("Redis did not confirm the subscription")

    async def ping(self, now: float) -> None:
        """Send a ping if the last one was sent `PING_SECONDS` ago. Raises what redis-py does."""
        if now - self._pinged_at >= PING_SECONDS:
            self._pinged_at = now
            self._unanswered += 1
            await self._pubsub.ping()

    async def payload(self, timeout: float) -> bytes | None:
        """Return the next payload; None if none arrives within `timeout` seconds, or if a ping was answered."""
        message = await self._message(timeout)
        return None if message is None else self._payload_of(message)

    def _payload_of(self, message: Any) -> bytes | None:  # noqa: ANN401  redis-py's messages are untyped
        if message["type"] == "pong":
            self._unanswered -= 1
            return None
        if message["type"] != "message":
            # Unsubscribed or silently reconnected: messages may be missing.
            raise TransportUnavailable("the subscription was interrupted")
        payload: bytes = message["data"]
        return payload

    async def _message(self, timeout: float) -> Any:  # noqa: ANN401  redis-py's pub/sub is untyped
        try:
            return await self._pubsub.get_message(timeout=timeout)
        except BROKEN as error:
            if self._unanswered and isinstance(error, ResponseError):
                # Redis refuses a ping that the ACL does not allow. That keeps the connection in use as well.
                return {"type": "pong"}
            raise TransportUnavailable(f"subscription lost: {describe(error)}") from error

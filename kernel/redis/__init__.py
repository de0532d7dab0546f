"""The transport on Redis: numbers, stores and announces events in one script call."""

from kernel.redis.transport import RedisTransport

__all__ = ["RedisTransport"]

"""The transport over Redis: numbers, stores and announces events in one call of a script."""

from kernel.redis.failures import response_code
from kernel.redis.transport import RedisTransport

__all__ = ["RedisTransport", "response_code"]

"""Trying again: how long to wait, how often, and what is counted on the way.

`broadcast_with_retry` knows nothing of Redis or of events and is usable alone. It holds the kernel's only sleep
between publish attempts.
Not here: whether to try at all while the link is down (circuit.py), spans and log shipping (telemetry).
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from kernel.errors import CircuitOpen, MessageInvalid, NotStarted

__all__ = ["BroadcastRetryMetrics", "backoff", "broadcast_with_retry"]

_logger = logging.getLogger(__name__)

# Bad input stays bad: no retry, and no word about the link either.
_INVALID: Final = (MessageInvalid, ValueError, TypeError, msgspec.ValidationError)

T = TypeVar("T")


def backoff(attempt: int, base: float, maximum: float, jitter: float) -> float:
    """Return the seconds to wait after the failed attempt number `attempt`, counted from 0.

    min(base · 2^attempt, maximum), plus 10 % (`jitter` 0.0) to 30 % (`jitter` 1.0) of it.
    """
    # A listener may count attempts for days, and 2.0 ** 1024 is an OverflowError.
    delay = min(base * 2.0 ** min(attempt, 1023), maximum)
    return delay * (1.1 + 0.2 * jitter)


class BroadcastRetryMetrics:
    """What became of the broadcasts, and how many tries that took.

    A broadcast is one call of `broadcast_with_retry` that ended otherwise than by a validation error: those never got
    as far as a try worth counting. An attempt is one call of its function, so that a broadcast makes one attempt more
    than retries. A failed broadcast is one that raised: its retries were exhausted, the circuit refused it, or it was
    cancelled.

    `total_attempts`: attempts of all broadcasts; `successful_broadcasts`, `failed_broadcasts`: broadcasts;
    `retries_exhausted`: failed broadcasts that had used up all their retries; `retry_counts`: number of retries ->
    successful broadcasts that needed as many.
    """

    def __init__(self) -> None:
        self.total_attempts = 0
        self.successful_broadcasts = 0
        self.failed_broadcasts = 0
        self.retries_exhausted = 0
        self.retry_counts: dict[int, int] = {}

    @property
    def success_rate(self) -> float:
        """The share of broadcasts that succeeded, 0.0 to 1.0; 1.0 before the first, as nothing has failed yet."""
        broadcasts = self.successful_broadcasts + self.failed_broadcasts
        return self.successful_broadcasts / broadcasts if broadcasts else 1.0

    def record_success(self, retries: int) -> None:
        """Count a broadcast that succeeded after `retries` retries."""
        self.total_attempts += retries + 1
        self.successful_broadcasts += 1
        self.retry_counts[retries] = self.retry_counts.get(retries, 0) + 1

    def record_failure(self, retries: int, *, exhausted: bool) -> None:
        """Count a broadcast that failed after `retries` retries; `exhausted` if no more were allowed."""
        self.total_attempts += retries + 1
        self.failed_broadcasts += 1
        self.retries_exhausted += exhausted

    def as_dict(self) -> dict[str, object]:
        """Return all of it, `success_rate` included, as `/health` shows it under `retry`."""
        return {
            "total_attempts": self.total_attempts,
            "successful_broadcasts": self.successful_broadcasts,
            "failed_broadcasts": self.failed_broadcasts,
            "retries_exhausted": self.retries_exhausted,
            "retry_counts": dict(sorted(self.retry_counts.items())),
            "success_rate": self.success_rate,
        }


async def broadcast_with_retry(
    func: Callable[[], Awaitable[T]],
    message_type: str,
    *,
    max_retries: int = 3,
    base_delay: float = 1.0,
    max_delay: float = 30.0,
    metrics: BroadcastRetryMetrics | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    jitter: Callable[[], float] = random.random,
    on_retry: Callable[[int, float, Exception], object] | None = None,
) -> T:
    """Await `func()` until it succeeds, at most `1 + max_retries` times, and return its result.

    Delays are in seconds and follow `backoff`. Before each, a warning is logged (with `message_type`, never with a
    payload) and `on_retry(retry, delay, error)` is called, the first retry being 1.

    Raises what `func` raised: the last error when the retries are exhausted; at once CircuitOpen, NotStarted,
    cancellation and validation errors (MessageInvalid, ValueError, TypeError, msgspec.ValidationError).
    """
    if metrics is None:
        metrics = BroadcastRetryMetrics()
    retries = 0
    exhausted = False
    try:
        while True:
            try:
                result = await func()
                break
            except (*_INVALID, CircuitOpen, NotStarted):
                raise
            except Exception as error:
                exhausted = retries >= max_retries
                if exhausted:
                    raise
                delay = backoff(retries, base_delay, max_delay, jitter())
                _logger.warning(
                    "%s failed with %s, retry %d of %d in %.1f s",
                    message_type,
                    type(error).__name__,
                    retries + 1,
                    max_retries,
                    delay,
                )
                if on_retry is not None:
                    on_retry(retries + 1, delay, error)
            await sleep(delay)
            retries += 1
    except _INVALID:
        raise
    except BaseException:
        metrics.record_failure(retries, exhausted=exhausted)
        raise
    metrics.record_success(retries)
    return result

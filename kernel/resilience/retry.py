"""Retries with exponential backoff and jitter, and the metrics of their outcomes.

`broadcast_with_retry` depends neither on Redis nor on events, and can be used alone. It is the only place where the
kernel sleeps between attempts of a publish.

Theory of operation. A broadcast is one call of `broadcast_with_retry`; an attempt is one call of its function. After an
attempt there are three cases. If it returned, the broadcast has succeeded. If it raised an error that no retry can cure
(invalid input, CircuitOpen, NotStarted), that error is raised at once. After any other error the next attempt follows
after the delay of `backoff`; once `max_retries` retries have been made, the last error is raised. A cancellation ends
the broadcast at any point. Every broadcast is counted once, when it ends, except one that ends with invalid input.

Not here: whether an attempt is allowed while the link is down (circuit.py), and the spans of retries (telemetry).
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from kernel.errors import BroadcastFailed, CircuitOpen, MessageInvalid, NotStarted, TransportError

__all__ = ["BroadcastRetryMetrics", "backoff", "broadcast_with_retry"]

_logger = logging.getLogger(__name__)

# Invalid input stays invalid, so it is not retried. It says nothing about the link, so it is not counted either.
_INVALID: Final = (MessageInvalid, ValueError, TypeError, msgspec.ValidationError)

T = TypeVar("T")


def backoff(attempt: int, base: float, maximum: float, jitter: float) -> float:
    """Return the seconds to wait after the failed attempt number `attempt`, counted from 0.

    min(base · 2^attempt, maximum), plus 10 % (`jitter` 0.0) to 30 % (`jitter` 1.0) of it.
    """
    # The listener may count attempts for days, and 2.0 ** 1024 raises OverflowError.
    delay = min(base * 2.0 ** min(attempt, 1023), maximum)
    return delay * (1.1 + 0.2 * jitter)


class BroadcastRetryMetrics:
    """Counts of broadcasts by outcome, and of the attempts that they took.

    A broadcast is one call of `broadcast_with_retry`; one that ends with a validation error is not counted. An attempt
    is one call of its function, so a broadcast makes one attempt more than retries. A broadcast fails if its retries
    are exhausted, if the circuit refuses it, or if it is cancelled.

    `total_attempts` counts the attempts of all broadcasts, `successful_broadcasts` and `failed_broadcasts` count
    broadcasts, and `retries_exhausted` counts the failed broadcasts that had used all their retries. `retry_counts`
    maps a number of retries to the successful broadcasts that needed exactly that many.
    """

    def __init__(self) -> None:
        self.total_attempts = 0
        self.successful_broadcasts = 0
        self.failed_broadcasts = 0
        self.retries_exhausted = 0
        self.retry_counts: dict[int, int] = {}

    @property
    def success_rate(self) -> float:
        """The share of broadcasts that succeeded, from 0.0 to 1.0; 1.0 before the first broadcast."""
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
        """Return all counts and `success_rate`, as `/health` shows them under `retry`."""
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

    Args:
        func: The function to retry.
        message_type: The name of the message in log lines, which never contain the payload.
        max_retries: Retries after the first attempt.
        base_delay: Seconds before the first retry; each further delay is twice as long (see `backoff`).
        max_delay: The longest delay in seconds, before jitter.
        metrics: Where the outcome is counted, if given.
        sleep: Waits for that many seconds between two attempts.
        jitter: Returns a number from 0.0 to 1.0 for each delay.
        on_retry: Called as `on_retry(retry, delay, error)` before each delay; the first retry is number 1.

    Raises:
        MessageInvalid, ValueError, TypeError, msgspec.ValidationError: The input is invalid; raised at once.
        BroadcastFailed, CircuitOpen, NotStarted: No attempt is allowed; raised at once.
        Exception: The last error of `func`, once the retries are exhausted.
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
            except (*_INVALID, BroadcastFailed, CircuitOpen, NotStarted):
                raise
            except Exception as error:
                exhausted = retries >= max_retries
                # Only the kernel's own texts are known to quote neither a payload nor a credential.
                name, reason = type(error).__name__, f": {error}" if isinstance(error, TransportError) else ""
                if exhausted:
                    _logger.warning("%s failed with %s, no retry left%s", message_type, name, reason)
                    raise
                delay = backoff(retries, base_delay, max_delay, jitter())
                _logger.warning(
                    "%s failed with %s, retry %d of %d in %.1f s%s",
                    message_type,
                    name,
                    retries + 1,
                    max_retries,
                    delay,
                    reason,
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

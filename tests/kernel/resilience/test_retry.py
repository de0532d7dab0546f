"""Back-off, the retry helper and its metrics."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.errors import CircuitOpen, FieldError, MessageInvalid, TransportUnavailable, WriteRefused
from kernel.resilience.retry import BroadcastRetryMetrics, backoff, broadcast_with_retry


class Calls:
    """A function whose calls end as given, one after another, and the sleeps between them."""

    def __init__(self, *outcomes: BaseException | str) -> None:
        self.outcomes = list(outcomes)
        self.slept: list[float] = []

    async def __call__(self) -> str:
        """End this call as given."""
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def sleep(self, delay: float) -> None:
        """Note the delay and go on at once."""
        self.slept.append(delay)


def down(number: int = 0) -> TransportUnavailable:
    """Return an error worth a retry."""
    return TransportUnavailable(f"no connection {number}")


def test_delays_double_up_to_the_maximum() -> None:
    """The delay is min(1.0·2^k, 30.0) s plus 10 to 30 % of it."""
    assert [backoff(k, 1.0, 30.0, 0.0) for k in range(7)] == pytest.approx([1.1, 2.2, 4.4, 8.8, 17.6, 33.0, 33.0])
    assert [backoff(k, 1.0, 30.0, 1.0) for k in range(7)] == pytest.approx([1.3, 2.6, 5.2, 10.4, 20.8, 39.0, 39.0])


@settings(deadline=None)
@given(st.integers(0, 5000), st.floats(0.001, 60), st.floats(0, 3600), st.floats(0, 1))
def test_delays_are_bounded(attempt: int, base: float, maximum: float, jitter: float) -> None:
    """The delay stays within its bounds, however many attempts an outage takes."""
    bound = float(min(Fraction(base) * 2**attempt, Fraction(maximum)))
    assert backoff(attempt, base, maximum, jitter) == pytest.approx(bound * (1.1 + 0.2 * jitter))


async def test_success_at_once() -> None:
    """A call that succeeds is not repeated, and its result is returned."""
    calls, metrics = Calls("done"), BroadcastRetryMetrics()
    assert await broadcast_with_retry(calls, "event", metrics=metrics, sleep=calls.sleep) == "done"
    assert calls.slept == []
    assert metrics.retry_counts == {0: 1}


async def test_up_to_three_retries() -> None:
    """There are up to 3 retries by default, with growing delays."""
    calls, metrics = Calls(down(), down(), down(), "done"), BroadcastRetryMetrics()
    result = await broadcast_with_retry(calls, "event", metrics=metrics, sleep=calls.sleep, jitter=lambda: 0.5)
    assert result == "done"
    assert calls.slept == pytest.approx([1.2, 2.4, 4.8])
    assert metrics.as_dict() == {
        "total_attempts": 4,
        "successful_broadcasts": 1,
        "failed_broadcasts": 0,
        "retries_exhausted": 0,
        "retry_counts": {3: 1},
        "success_rate": 1.0,
    }


async def test_exhausted() -> None:
    """When the retries are exhausted the last error is raised as it is."""
    errors = [down(number) for number in range(4)]
    calls, metrics = Calls(*errors), BroadcastRetryMetrics()
    with pytest.raises(TransportUnavailable) as raised:
        await broadcast_with_retry(calls, "event", metrics=metrics, sleep=calls.sleep)
    assert raised.value is errors[3]
    assert metrics.as_dict() == {
        "total_attempts": 4,
        "successful_broadcasts": 0,
        "failed_broadcasts": 1,
        "retries_exhausted": 1,
        "retry_counts": {},
        "success_rate": 0.0,
    }


async def test_no_retries_allowed() -> None:
    """BROADCAST_MAX_RETRIES 0 means one attempt."""
    calls, metrics = Calls(down(), "never reached"), BroadcastRetryMetrics()
    with pytest.raises(TransportUnavailable):
        await broadcast_with_retry(calls, "event", max_retries=0, metrics=metrics, sleep=calls.sleep)
    assert (metrics.total_attempts, metrics.retries_exhausted, calls.slept) == (1, 1, [])


async def test_own_delays() -> None:
    """Base and maximum of the delay are the caller's, and metrics are optional."""
    calls = Calls(down(), down(), "done")
    await broadcast_with_retry(calls, "event", base_delay=2.0, max_delay=3.0, sleep=calls.sleep, jitter=lambda: 0.0)
    assert calls.slept == pytest.approx([2.2, 3.3])


@pytest.mark.parametrize(
    "error",
    [
        MessageInvalid([FieldError("data.id", "missing")]),
        ValueError("bad"),
        TypeError("bad"),
        msgspec.ValidationError("bad"),
    ],
)
async def test_validation_errors(error: Exception) -> None:
    """Validation errors are never retried, and are no broadcasts in the metrics."""
    calls, metrics = Calls(error, "never reached"), BroadcastRetryMetrics()
    with pytest.raises(type(error)) as raised:
        await broadcast_with_retry(calls, "event", metrics=metrics, sleep=calls.sleep)
    assert raised.value is error
    assert calls.slept == []
    assert metrics.as_dict() == BroadcastRetryMetrics().as_dict()


async def test_circuit_open() -> None:
    """An open circuit is not worth a retry; the broadcast failed without exhausting any."""
    calls, metrics = Calls(down(), CircuitOpen(12.0), "never reached"), BroadcastRetryMetrics()
    with pytest.raises(CircuitOpen):
        await broadcast_with_retry(calls, "event", metrics=metrics, sleep=calls.sleep)
    assert (len(calls.slept), metrics.total_attempts) == (1, 2)
    assert (metrics.failed_broadcasts, metrics.retries_exhausted) == (1, 0)


async def test_cancelled_call() -> None:
    """Cancellation passes through at once and counts as a failed broadcast."""
    calls, metrics = Calls(asyncio.CancelledError(), "never reached"), BroadcastRetryMetrics()
    with pytest.raises(asyncio.CancelledError):
        await broadcast_with_retry(calls, "event", metrics=metrics, sleep=calls.sleep)
    assert (metrics.total_attempts, metrics.failed_broadcasts, metrics.retries_exhausted) == (1, 1, 0)


async def test_cancelled_delay() -> None:
    """Cancellation between two attempts passes through and counts the one that was made."""

    async def sleep(delay: float) -> None:
        raise asyncio.CancelledError

    calls, metrics = Calls(down(), "never reached"), BroadcastRetryMetrics()
    with pytest.raises(asyncio.CancelledError):
        await broadcast_with_retry(calls, "event", metrics=metrics, sleep=sleep)
    assert (metrics.total_attempts, metrics.failed_broadcasts, metrics.retries_exhausted) == (1, 1, 0)


async def test_on_retry() -> None:
    """Each retry is told before its delay, with its number, delay and error."""
    errors = [down(1), down(2)]
    calls = Calls(*errors, "done")
    told: list[tuple[int, float, Exception, int]] = []
    await broadcast_with_retry(
        calls,
        "event",
        sleep=calls.sleep,
        on_retry=lambda retry, delay, error: told.append((retry, delay, error, len(calls.slept))),
    )
    assert told == [(1, calls.slept[0], errors[0], 0), (2, calls.slept[1], errors[1], 1)]


async def test_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Each failed attempt logs one warning with the message type and the error's class.

    It repeats the text of an error of the link, which says what to do, and of no other: that may quote a payload.
    """
    calls = Calls(WriteRefused("Redis is full"), RuntimeError("secret"))
    with caplog.at_level(logging.WARNING, "kernel.resilience.retry"), pytest.raises(RuntimeError):
        await broadcast_with_retry(calls, "event", max_retries=1, sleep=calls.sleep, jitter=lambda: 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "event failed with WriteRefused, retry 1 of 1 in 1.1 s: Redis is full",
        "event failed with RuntimeError, no retry left",
    ]


def test_metrics_of_several_broadcasts() -> None:
    """Retry counts are in order; the success rate counts broadcasts, 1.0 before the first."""
    metrics = BroadcastRetryMetrics()
    assert metrics.success_rate == 1.0
    for retries in (2, 0, 0):
        metrics.record_success(retries)
    metrics.record_failure(3, exhausted=True)
    assert list(metrics.retry_counts) == [2, 0]
    assert metrics.as_dict() == {
        "total_attempts": 9,
        "successful_broadcasts": 3,
        "failed_broadcasts": 1,
        "retries_exhausted": 1,
        "retry_counts": {0: 2, 2: 1},
        "success_rate": 0.75,
    }
    assert list(metrics.as_dict()["retry_counts"]) == [0, 2]


async def test_real_sleep() -> None:
    """`broadcast_with_retry` works with no more than a function and a name."""
    calls: Callable[[], Awaitable[str]] = Calls(down(), "done")
    assert await broadcast_with_retry(calls, "event", base_delay=0.0) == "done"

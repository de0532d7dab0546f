"""The token bucket: a burst, then a rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.clients.token_bucket import TokenBucket


def test_take() -> None:
    """The burst passes at once; then a token comes at the rate, and one too early is told when to try again."""
    bucket = TokenBucket(0.2, 4, 100.0)
    assert [bucket.take(100.0) for _ in range(5)] == [0, 0, 0, 0, pytest.approx(5.0)]
    assert bucket.take(103.0) == pytest.approx(2.0)
    assert bucket.take(105.0) == 0
    assert bucket.take(105.0) == pytest.approx(5.0)
    assert [bucket.take(1000.0) for _ in range(5)] == [0, 0, 0, 0, pytest.approx(5.0)]


def test_spend() -> None:
    """More can be spent than there is; what is missing comes first."""
    bucket = TokenBucket(50, 100, 0.0)
    assert bucket.spend(100, 0.0) == 0
    assert bucket.spend(1, 0.0) == pytest.approx(0.02)
    assert bucket.spend(0.05, 0.02) == pytest.approx(0.001)
    assert bucket.spend(1, 10.0) == 0


def test_a_clock_that_is_set_back() -> None:
    """A clock that is set back neither adds tokens nor takes any away."""
    bucket = TokenBucket(1, 1, 100.0)
    assert bucket.take(100.0) == 0
    assert bucket.take(50.0) == pytest.approx(1.0)
    assert bucket.take(100.5) == pytest.approx(0.5)
    assert bucket.take(101.0) == 0


@given(st.lists(st.floats(0, 20), max_size=50))
def test_no_more_than_the_rate(pauses: list[float]) -> None:
    """However the attempts are spread, no more than the burst and the rate pass; waiting as told always suffices."""
    bucket, now = TokenBucket(0.2, 4, 0.0), 0.0
    for taken, pause in enumerate(pauses, 1):
        now += pause
        wait = bucket.take(now)
        if wait:
            now += wait
            assert bucket.take(now) == 0
        assert taken <= 4 + 0.2 * now + 1e-3

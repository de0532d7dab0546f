"""Fixtures of the listening side's tests."""

import pytest

from tests.fakes import FakeRedis
from tests.kernel.listening.listening_side import RecordingObserver
from tests.kernel.replicas import fill


@pytest.fixture
def observer() -> RecordingObserver:
    """Return an observer that records."""
    return RecordingObserver()


@pytest.fixture
def redis() -> FakeRedis:
    """Return a Redis with 250 events."""
    redis = FakeRedis()
    fill(redis, 250)
    return redis

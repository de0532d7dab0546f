"""Services for the system tests: two replicas that most tests share, and a factory for tests that need their own."""

from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest
import redis

from handlers.server.embedded import EmbeddedValkey
from tests.system.fault_environment import FaultEnvironment
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import wait_until

_channels = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder: they start real server processes."""
    for item in items:
        if "tests/system/" in str(item.path):
            item.add_marker(pytest.mark.system)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaFactory]:
    """Start replicas for one test."""
    with ReplicaFactory(tmp_path_factory.getbasetemp()) as start:
        yield start


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaFactory]:
    """Start replicas for the tests of one module."""
    with ReplicaFactory(tmp_path_factory.getbasetemp()) as start:
        yield start


@pytest.fixture(scope="session")
def pair(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Replica]]:
    """Two replicas on one Redis, for all tests that change no settings and inject no faults."""
    with ReplicaFactory(tmp_path_factory.getbasetemp()) as start:
        yield start.pair(redis_url=valkey, redis_event_channel="shared")


@pytest.fixture
def replicas(pair: tuple[Replica, Replica], valkey: str) -> tuple[Replica, Replica]:
    """The shared replicas, once both have delivered everything that earlier tests published."""
    with redis.Redis.from_url(valkey) as link:
        epoch, sequence = link.hmget("{shared}:position", "epoch", "sequence")
    place = (epoch or b"").decode(), int(sequence or 0)
    wait_until(lambda: all((health["epoch"], health["sequence"]) == place for health in map(Replica.health, pair)))
    return pair


@pytest.fixture
def replica(replicas: tuple[Replica, Replica]) -> Replica:
    """One of the two shared replicas."""
    return replicas[0]


@pytest.fixture
def other(replicas: tuple[Replica, Replica]) -> Replica:
    """The other shared replica."""
    return replicas[1]


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """A channel that no other test uses."""
    return f"channel-{next(_channels)}"


@pytest.fixture
def private_redis() -> Iterator[str]:
    """The URL of a Redis of the test's own, which it may break."""
    server = EmbeddedValkey()
    yield server.start()
    server.stop()


@pytest.fixture
async def env(start: ReplicaFactory) -> AsyncIterator[FaultEnvironment]:
    """A Redis of the test's own, and replicas behind proxies."""
    async with FaultEnvironment(start) as env:
        yield env

"""Services for the tests: two replicas that most tests share, and more of any kind for those that need their own."""

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Self

import pytest
import redis

from handlers.server.embedded import EmbeddedValkey
from tests.system.fault_environment import Stage
from tests.system.replica import Replica, wait_until

# Everything that goes by intervals goes fast, so that no test waits for it.
FAST = {
    "websocket_ping_interval_seconds": 0.2,
    "position_check_seconds": 1,
    "supervision_interval_seconds": 1,
    "broadcast_base_delay_seconds": 0.05,
    "message_buffer_size": 20,
}

_numbers = count(1)


class Start:
    """Starts replicas: `start(**settings)`; those that are still there at the end of the block are stopped in order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._replicas: list[Replica] = []

    def __call__(self, *, ready: object = True, **settings: object) -> Replica:
        """Start one with these settings, and wait until it is ready, or only until it answers."""
        replica = Replica(self._folder / f"replica-{next(_numbers)}.log", **(FAST | settings))
        self._replicas.append(replica)
        return replica.start(ready=bool(ready))

    def pair(self, **settings: object) -> tuple[Replica, Replica]:
        """Start two alike, at the same time."""
        with ThreadPoolExecutor() as pool:
            first, second = pool.map(lambda _: self(**settings), range(2))
        return first, second

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for replica in self._replicas if kind is None else ():
                replica.stop()
        finally:
            for replica in self._replicas:
                replica.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is in this folder starts real server processes."""
    for item in items:
        if "tests/system/" in str(item.path):
            item.add_marker(pytest.mark.system)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start replicas for one test."""
    with Start(tmp_path_factory.getbasetemp()) as start:
        yield start


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start replicas for the tests of one module."""
    with Start(tmp_path_factory.getbasetemp()) as start:
        yield start


@pytest.fixture(scope="session")
def pair(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Replica]]:
    """Two replicas on one Redis, for all tests that change no settings and break nothing."""
    with Start(tmp_path_factory.getbasetemp()) as start:
        yield start.pair(redis_url=valkey, redis_event_channel="shared")


@pytest.fixture
def settled(pair: tuple[Replica, Replica], valkey: str) -> tuple[Replica, Replica]:
    """The two, when both have delivered what the test before has published."""
    with redis.Redis.from_url(valkey) as link:
        epoch, sequence = link.hmget("{shared}:position", "epoch", "sequence")
    place = (epoch or b"").decode(), int(sequence or 0)
    wait_until(lambda: all((health["epoch"], health["sequence"]) == place for health in map(Replica.health, pair)))
    return pair


@pytest.fixture
def replica(settled: tuple[Replica, Replica]) -> Replica:
    """One of the two."""
    return settled[0]


@pytest.fixture
def other(settled: tuple[Replica, Replica]) -> Replica:
    """The other one."""
    return settled[1]


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """A channel that no other test uses."""
    return f"channel-{next(_numbers)}"


@pytest.fixture
def private_redis() -> Iterator[str]:
    """The URL of a Redis of the test's own, to be treated badly."""
    server = EmbeddedValkey()
    yield server.start()
    server.stop()


@pytest.fixture
async def stage(start: Start) -> AsyncIterator[Stage]:
    """A Redis of the test's own, with room for replicas behind proxies."""
    async with Stage(start) as stage:
        yield stage

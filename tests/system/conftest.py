"""Services for the tests: two replicas that most tests share, and more of any kind for those that need their own."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from handlers.embedded import EmbeddedValkey
from tests.system.replica import Replica, killed_at_the_end

# Everything that goes by intervals goes fast, so that no test waits for it.
FAST = {
    "websocket_ping_interval_seconds": 0.2,
    "position_check_seconds": 1,
    "supervision_interval_seconds": 1,
    "broadcast_base_delay_seconds": 0.05,
    "message_buffer_size": 20,
}

Start = Callable[..., Replica]

_numbers = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is in this folder starts real server processes."""
    for item in items:
        if "tests/system/" in str(item.path):
            item.add_marker(pytest.mark.system)


def _starter(replicas: list[Replica], folder: pytest.TempPathFactory) -> Start:
    def start(*, ready: bool = True, **settings: Any) -> Replica:
        log = folder.getbasetemp() / f"replica-{next(_numbers)}.log"
        replica = Replica(log, **(FAST | settings))
        replicas.append(replica)
        return replica.start(ready=ready)

    return start


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a replica with these settings; those that are still there at the end are stopped in order."""
    replicas: list[Replica] = []
    with killed_at_the_end(replicas):
        yield _starter(replicas, tmp_path_factory)
        for replica in replicas:
            replica.stop()


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """The same for the tests of one module."""
    replicas: list[Replica] = []
    with killed_at_the_end(replicas):
        yield _starter(replicas, tmp_path_factory)
        for replica in replicas:
            replica.stop()


@pytest.fixture(scope="session")
def pair(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Replica]]:
    """Two replicas on one Redis, for all tests that change no settings and break nothing."""
    replicas: list[Replica] = []
    with killed_at_the_end(replicas):
        start = _starter(replicas, tmp_path_factory)
        shared = {"redis_url": valkey, "redis_event_channel": "shared"}
        yield start(**shared), start(**shared)
        for replica in replicas:
            replica.stop()


@pytest.fixture
def replica(pair: tuple[Replica, Replica]) -> Replica:
    """One of the two."""
    return pair[0]


@pytest.fixture
def other(pair: tuple[Replica, Replica]) -> Replica:
    """The other one."""
    return pair[1]


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

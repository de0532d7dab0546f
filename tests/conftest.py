"""Real servers for the tests: Valkey from its package, and the Redis of the system where there is one."""

import os
import shutil
import signal
from collections.abc import Iterator

import pytest
import redis

from handlers.server.embedded import EmbeddedValkey
from tests import processes


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Kill child processes that are still running after all tests and fixtures, and fail if there are any."""
    yield
    left = processes.children()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """The URL of a Valkey server that all tests share; `redis_url` is for tests that need it empty."""
    server = EmbeddedValkey()
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis server that all tests share; skips where none is installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on the PATH")
    server = EmbeddedValkey(binary)
    yield server.start()
    server.stop()


@pytest.fixture
def redis_url(valkey: str) -> str:
    """The URL of an empty Valkey server."""
    return emptied(valkey)


@pytest.fixture(params=["valkey", "redis_server"])
def each_redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty server, of each kind in turn."""
    return emptied(request.getfixturevalue(request.param))


def emptied(url: str) -> str:
    """Empty a server, scripts included."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.script_flush()
    return url

"""Fixtures: the replicas of the system tests, for the tests of probes and scaling, and free ports."""

import socket

import pytest

from tests.system.conftest import channel, private_redis, start

__all__ = ["channel", "private_redis", "start", "unused_ports"]


@pytest.fixture
def unused_ports() -> tuple[int, int]:
    """Return two free local ports."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]

"""Real replicas for the tests of probes and scaling: the same helpers as in the system tests."""

from tests.system.conftest import channel, private_redis, start

__all__ = ["channel", "private_redis", "start"]

"""The division of file descriptors, and the connection that makes way for a new one."""

import logging

import pytest

from handlers.server.descriptors import ConnectionLimit, DescriptorPlan


class Connection:
    """A connection that notes its end."""

    def __init__(self) -> None:
        self.evicted = False

    def evict(self) -> None:
        """End it."""
        self.evicted = True


@pytest.mark.parametrize("descriptors", [10, 32, 64, 256, 1024, 20_000, 1_048_576, 1 << 30])
def test_a_plan(descriptors: int) -> None:
    """Every limit leaves descriptors for Redis, and connections for health and publishes."""
    plan = DescriptorPlan.for_limit(descriptors)
    assert plan.connections <= max(8, descriptors - 32)
    assert 1 <= plan.websockets < plan.connections
    assert plan.connections - plan.websockets >= min(8, plan.connections // 4)


@pytest.mark.parametrize(
    ("configured", "cap", "level"),
    [(0, 24, logging.WARNING), (10, 10, None), (24, 24, None), (100, 24, logging.WARNING)],
)
def test_a_cap(configured: int, cap: int, level: int | None, caplog: pytest.LogCaptureFixture) -> None:
    """The smaller cap counts, and the log says so if that is the one of the descriptors."""
    with caplog.at_level(logging.INFO):
        assert DescriptorPlan.for_limit(64).cap(configured) == cap
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])


def test_a_large_cap_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Without a configured cap, a large limit is only noted."""
    with caplog.at_level(logging.INFO):
        DescriptorPlan.for_limit(20_000).cap(0)
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_who_makes_way(caplog: pytest.LogCaptureFixture) -> None:
    """The connection that has been evictable longest makes way; without one the new connection is refused."""
    limit = ConnectionLimit(2)
    first, second, third = Connection(), Connection(), Connection()
    for connection in (first, second, third):
        limit.mark_evictable(connection)
    limit.keep(second)
    limit.mark_evictable(second)
    limit.mark_evictable(first)  # it is already
    assert limit.admit(2)
    assert not first.evicted
    assert limit.admit(3)
    assert [each.evicted for each in (first, second, third)] == [True, False, False]
    assert limit.admit(3)
    assert [each.evicted for each in (first, second, third)] == [True, False, True]
    limit.keep(second)
    assert not limit.admit(3)
    assert not second.evicted
    assert len(caplog.records) == 1, "the log says so once"

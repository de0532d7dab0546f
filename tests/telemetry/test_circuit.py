"""The spans of the circuit breaker for Redis."""

from msgspec.structs import replace

from tests.fakes import FakeRedis
from tests.kernel.replicas import RARE_CHECKS, PausableTransport, join, replica, resync
from tests.telemetry.conftest import Watch, attempt, value
from tests.waiting import eventually


async def test_the_circuit(redis: FakeRedis, watch: Watch) -> None:
    """A transition of the circuit has a span, linked to the publish that caused it, if one did."""
    config = replace(RARE_CHECKS, circuit_failure_threshold=2, circuit_recovery_seconds=0.02)
    async with replica(redis, config, observer=watch.tracing) as broadcaster:
        redis.fail(2)
        await attempt(broadcaster)
        # A resync from a position beyond the log makes the listener check the position in Redis.
        client, _ = join(broadcaster)
        resync(broadcaster, client, last_sequence=9)
        await eventually(lambda: not broadcaster.is_degraded())
    (publish,) = watch.named("publish c")
    (opened,) = watch.named("circuit closed -> open")
    (tried,), (closed,) = watch.named("circuit open -> half_open"), watch.named("circuit half_open -> closed")
    assert [link.context for link in opened.links] == [publish.context]
    assert value(opened, "failure_count") == 2
    assert value(opened, "reason") == "fake: no connection"
    assert (tried.links, closed.links) == ((), ())
    assert opened.parent is tried.parent is closed.parent is None


async def test_the_circuit_by_itself(redis: FakeRedis, watch: Watch) -> None:
    """If Redis is unreachable at the start, the circuit's span has no link, as no publish caused it."""
    redis.down = True
    config = replace(RARE_CHECKS, circuit_recovery_seconds=60.0)
    transport = PausableTransport(redis)
    async with replica(redis, config, observer=watch.tracing, transport=transport, without_redis=True):
        (opened,) = watch.named("circuit closed -> open")
    assert opened.links == ()

"""Publishes that meet a broken link: tried again, numbered once, or refused with a word on when to return."""

import asyncio
import time
from typing import Any

import pytest

from tests.proxy import Way
from tests.system.client import PATIENCE
from tests.system.fault_environment import Stage, becomes, frames_of, health, marks
from tests.system.replica import Replica
from tests.waiting import eventually

# Commands have time enough on a slow machine, and the circuit stays out of it: what is counted is what the test does.
CALM = {"position_check_seconds": 5, "circuit_failure_threshold": 1000}
EVENT = ("/broadcast/alert/deleted", {"id": "x"})


def publishes(piece: bytes) -> bool:
    """Whether this is the call of a publish, and no position check."""
    return b"EVALSHA" in piece and b'"data":' in piece


async def retry_numbers(replica: Replica) -> dict[str, Any]:
    """The retry numbers of `/health`."""
    numbers: dict[str, Any] = (await health(replica))["retry"]
    return numbers


async def tried_again(replica: Replica, count: int) -> None:
    """Wait until publishes were tried again so many times."""
    await eventually(lambda: replica.metric("retries_total") >= count, PATIENCE)


# -- one id, one number ---------------------------------------------------------------------------------------------


async def test_cut_before_the_answer(stage: Stage) -> None:
    """Section 2, errors: a publish whose answer is lost after Redis has acted is never numbered twice."""
    (replica,) = await stage.open(**CALM)
    (proxy,) = stage.proxies
    await stage.audience()
    for number in range(1, 6):
        proxy.cut_after(publishes)
        assert await stage.publish(replica) == [number]
        assert proxy.cuts == number
    assert stage.server.position[1] == 5
    numbers = await retry_numbers(replica)
    assert (numbers["total_attempts"], numbers["successful_broadcasts"]) == (10, 5)
    assert numbers["retry_counts"] == {"1": 5}
    assert (numbers["failed_broadcasts"], numbers["retries_exhausted"], numbers["success_rate"]) == (0, 0, 1.0)
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


async def test_batch_cut_before_the_answer(stage: Stage) -> None:
    """Section 2, errors: a batch whose answer is lost keeps its numbers, all of them, once."""
    (replica,) = await stage.open(**CALM)
    (proxy,) = stage.proxies
    await stage.audience()
    for first in (1, 31):
        proxy.cut_after(publishes)
        assert await stage.publish_batch(replica, 30) == list(range(first, first + 30))
    assert (proxy.cuts, stage.server.position[1]) == (2, 60)
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


async def test_many_cut_before_their_answers(stage: Stage) -> None:
    """Section 2, errors: publishes that were under way together and lose their answers are each numbered once."""
    (replica,) = await stage.open(**CALM)
    (proxy,) = stage.proxies
    await stage.audience()
    await stage.publish(replica)
    proxy.hold(publishes)
    publishing = [asyncio.ensure_future(stage.publish(replica))]
    async with asyncio.timeout(PATIENCE):
        await proxy.held.wait()
    # behind the answer that is held up the others gather
    publishing += [asyncio.ensure_future(stage.publish(replica)) for _ in range(19)]
    await health(replica)
    await health(replica)
    proxy.cut_after(publishes)
    proxy.release()
    numbers = {number for (number,) in await asyncio.gather(*publishing)}
    assert numbers == set(range(2, 22))
    assert (proxy.cuts, stage.server.position[1]) == (1, 21)
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


async def test_late_commands(stage: Stage) -> None:
    """Section 2, errors: tries that a black hole held back and lets out when it is over come to one number."""
    settings = {"circuit_failure_threshold": 1000, "broadcast_max_retries": 100, "broadcast_max_delay_seconds": 0.1}
    (replica,) = await stage.open(**settings)
    (proxy,) = stage.proxies
    await stage.audience()
    for number in range(1, 4):
        await proxy.go(Way.SWALLOW)
        publishing = asyncio.ensure_future(stage.publish(replica))
        await tried_again(replica, 2 * number)
        await proxy.go(Way.PASS)
        assert await publishing == [number]
    assert stage.server.position[1] == 3
    await stage.heal()
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


async def test_healed_in_time(stage: Stage) -> None:
    """Section 8, publish retry: a link that comes back before the retries are over costs the producer only time."""
    settings = {"circuit_failure_threshold": 1000, "broadcast_max_retries": 100, "broadcast_max_delay_seconds": 0.1}
    (replica,) = await stage.open(**settings)
    (proxy,) = stage.proxies
    await stage.audience()
    await proxy.go(Way.HANG_UP)
    publishing = [asyncio.ensure_future(stage.publish(replica)) for _ in range(5)]
    await tried_again(replica, 10)
    await proxy.go(Way.PASS)
    assert {number for (number,) in await asyncio.gather(*publishing)} == {1, 2, 3, 4, 5}
    numbers = await retry_numbers(replica)
    assert numbers["successful_broadcasts"] == sum(numbers["retry_counts"].values()) == 5
    assert numbers["total_attempts"] == 5 + sum(int(n) * count for n, count in numbers["retry_counts"].items())
    await stage.heal()
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [Way.REFUSE, Way.HANG_UP, Way.SWALLOW, Way.DEAF])
async def test_retries_exhausted(stage: Stage, way: Way) -> None:
    """Section 8, publish retry: after three retries, each later than the one before, it is 503 with Retry-After."""
    (replica,) = await stage.open(circuit_failure_threshold=1000)
    (proxy,) = stage.proxies
    await stage.audience()
    await proxy.go(way)
    begin = time.monotonic()
    answer = await replica.post(*EVENT)
    elapsed = time.monotonic() - begin
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    # 0.05, 0.1 and 0.2 s, 10 % more at least
    assert elapsed >= 0.38
    numbers = await retry_numbers(replica)
    assert (numbers["total_attempts"], numbers["retries_exhausted"], numbers["failed_broadcasts"]) == (4, 1, 1)
    assert (numbers["retry_counts"], numbers["success_rate"]) == ({}, 0.0)
    # nobody saw it but, maybe, who was only deaf
    stage.history.unknown("alert_deleted", EVENT[1])
    await proxy.go(Way.PASS)
    await stage.heal()
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


async def test_at_once_while_open(stage: Stage) -> None:
    """Section 2, errors: while the circuit is open it is 503 at once, with Retry-After, and Redis is left alone."""
    settings = {"circuit_recovery_seconds": 60, "broadcast_base_delay_seconds": 0.2}
    (replica,) = await stage.open(**settings)
    (proxy,) = stage.proxies
    await proxy.go(Way.HANG_UP)
    await becomes(replica, circuit_state="open")
    attempts, connections = (await retry_numbers(replica))["total_attempts"], proxy.connections
    begin = time.monotonic()
    async with replica.http() as http:
        for _ in range(50):
            answer = await http.post(EVENT[0], json=EVENT[1])
            assert answer.status_code == 503
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        # one retry each would take 11 s
        assert time.monotonic() - begin < 10
        answer = await http.post(EVENT[0], json={"id": 7})
        assert answer.status_code == 400, "what is wrong is wrong whether or not Redis is there"
    numbers = await retry_numbers(replica)
    assert (numbers["failed_broadcasts"], numbers["retries_exhausted"]) == (50, 0)
    assert numbers["total_attempts"] == attempts + 50
    assert proxy.connections == connections
    assert (await replica.request("GET", "/health/ready")).status_code == 200


async def test_invalid_is_never_retried(stage: Stage) -> None:
    """Section 8, publish retry: a validation error is never tried again, nor held against Redis."""
    (replica,) = await stage.open(**CALM)
    before = stage.proxies[0].connections
    for body in ({}, {"id": None}, [], {"type": "event", "data": {"id": "x"}}, {"data": {"id": 1}}):
        assert (await replica.post(EVENT[0], body)).status_code == 400
    good = {"type": "alert_deleted", "data": {"id": "x"}}
    assert (await replica.post("/broadcast/batch", [good, {"type": "alert_deleted"}])).status_code == 400
    report = await health(replica)
    assert report["retry"]["total_attempts"] == report["retry"]["failed_broadcasts"] == 0
    assert report["circuit"]["total_failures"] == 0
    assert stage.server.position[1] == 0
    assert stage.proxies[0].connections == before


# -- refused writes -------------------------------------------------------------------------------------------------

REFUSALS = {
    "OOM": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "NOREPLICAS": (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
    "READONLY": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "NOPERM to write": (("ACL", "SETUSER", "default", "-@write"), ("ACL", "SETUSER", "default", "+@write")),
    "NOPERM to number": (("ACL", "SETUSER", "default", "-hset"), ("ACL", "SETUSER", "default", "+hset")),
    "NOPERM to announce": (("ACL", "SETUSER", "default", "-publish"), ("ACL", "SETUSER", "default", "+publish")),
    "NOPERM on the channel": (("ACL", "SETUSER", "default", "resetchannels"), ("ACL", "SETUSER", "default", "&*")),
    "NOPERM to run scripts": (("ACL", "SETUSER", "default", "-evalsha"), ("ACL", "SETUSER", "default", "+evalsha")),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_refused_writes(stage: Stage, refusal: str) -> None:
    """Section 8, what counts: a Redis that answers and takes no writes opens the circuit; reads do not close it."""
    forbid, allow = REFUSALS[refusal]
    (replica,) = await stage.open()
    (proxy,) = stage.proxies
    witnesses = await stage.audience()
    await stage.publish(replica, 3)
    stage.server.link.execute_command(*forbid)
    connections = proxy.connections
    for _ in range(2):
        assert await stage.publish(replica) == [None]
    opened = await becomes(replica, status="degraded", redis="unreachable", sequence=3)
    # the trials write, and so fail; a read alone would have let them pass
    failures = opened["circuit"]["total_failures"]

    async def tried() -> bool:
        report = await health(replica)
        assert report["is_degraded"]
        return bool(report["circuit"]["total_failures"] >= failures + 3)

    await eventually(tried, PATIENCE)
    if refusal == "READONLY":
        assert proxy.connections >= connections + 3, "what is connected may be a former primary"
    stage.server.link.execute_command(*allow)
    await stage.heal()
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()
    for witness in witnesses:
        assert marks(frames_of(witness)) == ["degraded open", "healthy closed"]
    assert len([line for line in replica.log.splitlines() if " CRITICAL " in line]) == 1


async def test_refused_subscription(stage: Stage) -> None:
    """Section 7, nothing is lost: a replica that may not subscribe gets everything by its position checks."""
    (replica,) = await stage.open(circuit_failure_threshold=1000)
    await stage.audience()
    link = stage.server.link
    link.execute_command("ACL", "SETUSER", "default", "-subscribe")
    link.client_kill_filter(_type="pubsub")
    await becomes(replica, listener_healthy=False)
    assert None not in await stage.publish(replica, 20)
    await stage.settle()
    assert stage.server.listeners == 0
    link.execute_command("ACL", "SETUSER", "default", "+subscribe")
    await stage.heal()
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()

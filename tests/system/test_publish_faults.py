"""Publishes over a broken link: retried, numbered once, or refused with Retry-After."""

import asyncio
import time
from typing import Any

import pytest

from tests.proxy import ProxyMode
from tests.system.client import PATIENCE
from tests.system.fault_environment import FaultEnvironment, degraded_notices, health, wait_for_health
from tests.system.replica import Replica
from tests.waiting import eventually

# Long timeouts and a circuit that does not open: only the fault of the test causes retries.
PATIENT = {"position_check_seconds": 5, "circuit_failure_threshold": 1000}
EVENT = ("/broadcast/alert/deleted", {"id": "x"})


def is_publish(piece: bytes) -> bool:
    """Return True for a publish, False for a position check."""
    return b"EVALSHA" in piece and b'"data":' in piece


async def retry_numbers(replica: Replica) -> dict[str, Any]:
    """Return the retry statistics of `/health`."""
    numbers: dict[str, Any] = (await health(replica))["retry"]
    return numbers


async def wait_for_retries(replica: Replica, count: int) -> None:
    """Wait until publishes have been retried `count` times."""
    await eventually(lambda: replica.metric("retries_total") >= count, PATIENCE)


# -- one id, one number ---------------------------------------------------------------------------------------------


async def test_cut_before_the_answer(env: FaultEnvironment) -> None:
    """A publish whose answer is lost after Redis has acted is numbered once."""
    (replica,) = await env.start_replicas(**PATIENT)
    (proxy,) = env.proxies
    await env.connect_clients()
    for number in range(1, 6):
        proxy.cut_after(is_publish)
        assert await env.publish(replica) == [number]
        assert proxy.cuts == number
    assert env.server.position[1] == 5
    numbers = await retry_numbers(replica)
    assert (numbers["total_attempts"], numbers["successful_broadcasts"]) == (10, 5)
    assert numbers["retry_counts"] == {"1": 5}
    assert (numbers["failed_broadcasts"], numbers["retries_exhausted"], numbers["success_rate"]) == (0, 0, 1.0)
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


async def test_batch_cut_before_the_answer(env: FaultEnvironment) -> None:
    """A batch whose answer is lost keeps its numbers, each once."""
    (replica,) = await env.start_replicas(**PATIENT)
    (proxy,) = env.proxies
    await env.connect_clients()
    for first in (1, 31):
        proxy.cut_after(is_publish)
        assert await env.publish_batch(replica, 30) == list(range(first, first + 30))
    assert (proxy.cuts, env.server.position[1]) == (2, 60)
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


async def test_many_cut_before_their_answers(env: FaultEnvironment) -> None:
    """Concurrent publishes that lose their answers are each numbered once."""
    (replica,) = await env.start_replicas(**PATIENT)
    (proxy,) = env.proxies
    await env.connect_clients()
    await env.publish(replica)
    proxy.hold(is_publish)
    publishing = [asyncio.ensure_future(env.publish(replica))]
    async with asyncio.timeout(PATIENCE):
        await proxy.held.wait()
    # while this answer is held back the other publishes gather in the next call
    publishing += [asyncio.ensure_future(env.publish(replica)) for _ in range(19)]
    await health(replica)
    await health(replica)
    proxy.cut_after(is_publish)
    proxy.release()
    numbers = {number for (number,) in await asyncio.gather(*publishing)}
    assert numbers == set(range(2, 22))
    assert (proxy.cuts, env.server.position[1]) == (1, 21)
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


async def test_late_commands(env: FaultEnvironment) -> None:
    """If a black hole later releases all attempts of a publish, they still result in one number."""
    settings = {"circuit_failure_threshold": 1000, "broadcast_max_retries": 100, "broadcast_max_delay_seconds": 0.1}
    (replica,) = await env.start_replicas(**settings)
    (proxy,) = env.proxies
    await env.connect_clients()
    for number in range(1, 4):
        await proxy.set_mode(ProxyMode.SWALLOW)
        publishing = asyncio.ensure_future(env.publish(replica))
        await wait_for_retries(replica, 2 * number)
        await proxy.set_mode(ProxyMode.PASS)
        assert await publishing == [number]
    assert env.server.position[1] == 3
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


async def test_link_recovers_before_the_last_retry(env: FaultEnvironment) -> None:
    """If the link recovers before the retries are used up, the publish succeeds late."""
    settings = {"circuit_failure_threshold": 1000, "broadcast_max_retries": 100, "broadcast_max_delay_seconds": 0.1}
    (replica,) = await env.start_replicas(**settings)
    (proxy,) = env.proxies
    await env.connect_clients()
    await proxy.set_mode(ProxyMode.HANG_UP)
    publishing = [asyncio.ensure_future(env.publish(replica)) for _ in range(5)]
    await wait_for_retries(replica, 10)
    await proxy.set_mode(ProxyMode.PASS)
    assert {number for (number,) in await asyncio.gather(*publishing)} == {1, 2, 3, 4, 5}
    numbers = await retry_numbers(replica)
    assert numbers["successful_broadcasts"] == sum(numbers["retry_counts"].values()) == 5
    assert numbers["total_attempts"] == 5 + sum(int(n) * count for n, count in numbers["retry_counts"].items())
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [ProxyMode.REFUSE, ProxyMode.HANG_UP, ProxyMode.SWALLOW, ProxyMode.DEAF])
async def test_retries_exhausted(env: FaultEnvironment, mode: ProxyMode) -> None:
    """After three retries with growing delays the answer is 503 with Retry-After."""
    (replica,) = await env.start_replicas(circuit_failure_threshold=1000)
    (proxy,) = env.proxies
    await env.connect_clients()
    await proxy.set_mode(mode)
    begin = time.monotonic()
    answer = await replica.post(*EVENT)
    elapsed = time.monotonic() - begin
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    # delays of 0.05, 0.1 and 0.2 s, each at least 10 % longer
    assert elapsed >= 0.38
    numbers = await retry_numbers(replica)
    assert (numbers["total_attempts"], numbers["retries_exhausted"], numbers["failed_broadcasts"]) == (4, 1, 1)
    assert (numbers["retry_counts"], numbers["success_rate"]) == ({}, 0.0)
    # DEAF passes commands, so the event may have been published
    env.history.unknown("alert_deleted", EVENT[1])
    await proxy.set_mode(ProxyMode.PASS)
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


async def test_at_once_while_open(env: FaultEnvironment) -> None:
    """While the circuit is open the answer is 503 at once, with Retry-After, and Redis gets no call."""
    settings = {"circuit_recovery_seconds": 60, "broadcast_base_delay_seconds": 0.2}
    (replica,) = await env.start_replicas(**settings)
    (proxy,) = env.proxies
    await proxy.set_mode(ProxyMode.HANG_UP)
    await wait_for_health(replica, circuit_state="open")
    attempts, connections = (await retry_numbers(replica))["total_attempts"], proxy.connections
    begin = time.monotonic()
    async with replica.http() as http:
        for _ in range(50):
            answer = await http.post(EVENT[0], json=EVENT[1])
            assert answer.status_code == 503
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        # with one retry each this would take 11 s
        assert time.monotonic() - begin < 10
        answer = await http.post(EVENT[0], json={"id": 7})
        assert answer.status_code == 400, "validation comes before the circuit"
    numbers = await retry_numbers(replica)
    assert (numbers["failed_broadcasts"], numbers["retries_exhausted"]) == (50, 0)
    assert numbers["total_attempts"] == attempts + 50
    assert proxy.connections == connections
    assert (await replica.request("GET", "/health/ready")).status_code == 200


async def test_invalid_is_never_retried(env: FaultEnvironment) -> None:
    """An invalid body is never retried, and does not count as a failure of Redis."""
    (replica,) = await env.start_replicas(**PATIENT)
    before = env.proxies[0].connections
    for body in ({}, {"id": None}, [], {"type": "event", "data": {"id": "x"}}, {"data": {"id": 1}}):
        assert (await replica.post(EVENT[0], body)).status_code == 400
    good = {"type": "alert_deleted", "data": {"id": "x"}}
    assert (await replica.post("/broadcast/batch", [good, {"type": "alert_deleted"}])).status_code == 400
    report = await health(replica)
    assert report["retry"]["total_attempts"] == report["retry"]["failed_broadcasts"] == 0
    assert report["circuit"]["total_failures"] == 0
    assert env.server.position[1] == 0
    assert env.proxies[0].connections == before


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
async def test_refused_writes(env: FaultEnvironment, refusal: str) -> None:
    """A Redis that answers but refuses writes opens the circuit, and reads do not close it."""
    forbid, allow = REFUSALS[refusal]
    (replica,) = await env.start_replicas()
    (proxy,) = env.proxies
    recorders = await env.connect_clients()
    await env.publish(replica, 3)
    env.server.link.execute_command(*forbid)
    connections = proxy.connections
    for _ in range(2):
        assert await env.publish(replica) == [None]
    opened = await wait_for_health(replica, status="degraded", redis="unreachable", sequence=3)
    # the trial calls write, and so they fail; a read would have succeeded
    failures = opened["circuit"]["total_failures"]

    async def tried() -> bool:
        report = await health(replica)
        assert report["is_degraded"]
        return bool(report["circuit"]["total_failures"] >= failures + 3)

    await eventually(tried, PATIENCE)
    if refusal == "READONLY":
        assert proxy.connections >= connections + 3, "trials reconnect: the old connection may lead to a former primary"
    env.server.link.execute_command(*allow)
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()
    for recorder in recorders:
        assert degraded_notices(recorder.frames) == ["degraded open", "healthy closed"]
    assert len([line for line in replica.log.splitlines() if " CRITICAL " in line]) == 1


async def test_refused_subscription(env: FaultEnvironment) -> None:
    """A replica that is not allowed to subscribe gets every event by its position checks."""
    (replica,) = await env.start_replicas(circuit_failure_threshold=1000)
    await env.connect_clients()
    link = env.server.link
    link.execute_command("ACL", "SETUSER", "default", "-subscribe")
    link.client_kill_filter(_type="pubsub")
    await wait_for_health(replica, listener_healthy=False)
    assert None not in await env.publish(replica, 20)
    await env.wait_until_delivered()
    assert env.server.listeners == 0
    link.execute_command("ACL", "SETUSER", "default", "+subscribe")
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()

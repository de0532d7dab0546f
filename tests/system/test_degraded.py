"""Degraded mode: entered and left automatically; clients stay, are notified, and get what they missed afterwards."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.history import History, violations
from tests.proxy import ProxyMode
from tests.system.client import PATIENCE, Client, connected
from tests.system.fault_environment import FaultEnvironment, degraded_notices, health, wait_for_health
from tests.system.producers import Producer
from tests.system.recording_client import RecordingClient
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

BOTH = ["degraded open", "healthy closed"]


async def check_conversation(client: Client) -> None:
    """Check that the client still gets replies and heartbeats."""
    await client.send({"type": "ping"})
    await client.take(type="pong")
    before = len(client.heartbeats)
    await client.until(lambda: len(client.heartbeats) > before or None)


def circuit_log(replica: Replica) -> list[str]:
    """Return the states of the circuit in the order of the log."""
    return re.findall(r" kernel\.resilience\.link: circuit (open|half_open|closed)", replica.log)


# -- start without Redis --------------------------------------------------------------------------------------------


async def test_start_without_redis(env: FaultEnvironment) -> None:
    """A replica started without Redis is alive, degraded and not ready, and becomes healthy once Redis is there."""
    env.server.kill()
    (replica,) = await env.start_replicas(ready=False)
    assert (await replica.request("GET", "/health/live")).status_code == 200
    assert (await replica.request("GET", "/health/ready")).status_code == 503
    report = await health(replica)
    assert (report["status"], report["redis"]) == ("degraded", "unreachable")
    assert (report["epoch"], report["sequence"], report["listener_healthy"]) == ("", 0, False)
    recorders = await env.connect_clients()
    for recorder in recorders:
        client = recorder.open_connection
        hello = client.frames[0]
        assert (hello["type"], hello["epoch"], hello["lastSeq"]) == ("connected", "", 0)
        assert degraded_notices([await client.next()]) == BOTH[:1]
        await check_conversation(client)
        assert client.heartbeats[0] == {"type": "ping", "lastSeq": 0, "epoch": ""}
    assert await env.publish(replica) == [None]
    env.server.start()
    await env.wait_until_healthy()
    assert (await replica.request("GET", "/health/ready")).status_code == 200
    epoch = await env.wait_until_delivered()
    await env.check_history()
    for recorder in recorders:
        _, *rest = [frame for frame in recorder.frames if frame.get("type") not in ("ping", "pong")]
        assert degraded_notices(rest[:2]) == BOTH, "no other frame between the notices"
        assert rest[2] == {"type": "epoch_changed", "epoch": epoch}
        assert all("sequence" in frame for frame in rest[3:])


async def test_first_contact_with_a_full_redis(env: FaultEnvironment) -> None:
    """A replica that first reaches a Redis with events goes live at the newest one; resumes get their replay."""
    (first,) = await env.start_replicas()
    await env.publish(first, 30)
    epoch = (await health(first))["epoch"]
    env.proxies.append(await env.start_proxy())
    await env.proxies[1].set_mode(ProxyMode.REFUSE)
    _, late = await env.start_replicas(ready=False)
    plain = await env.connect(late)
    async with (
        connected(late.websocket(since=10, epoch=epoch)) as knows,
        connected(late.websocket(since=10, epoch="gone")) as mistaken,
        connected(late.websocket(since=1000, epoch=epoch)) as beyond,
    ):
        for client in (plain.open_connection, knows, mistaken, beyond):
            assert (await client.next())["epoch"] == ""
            assert degraded_notices([await client.next()]) == BOTH[:1]
            await check_conversation(client)
        await env.proxies[1].set_mode(ProxyMode.PASS)
        ack = await knows.take(type="resync_ack")
        assert (ack["recovered"], ack["epoch"], knows.numbers) == (True, epoch, list(range(11, 31)))
        ack = await mistaken.take(type="resync_ack")
        assert (ack["recovered"], ack["epoch_changed"], mistaken.numbers) == (False, True, list(range(1, 31)))
        ack = await beyond.take(type="resync_ack")
        assert (ack["recovered"], beyond.numbers) == (False, [])
        assert "epoch_changed" not in ack
        await env.wait_until_healthy()
        await env.wait_until_delivered()
        for client in (plain.open_connection, knows, mistaken, beyond):
            await client.reached(32)
            assert client.numbers[-2:] == [31, 32]
            assert degraded_notices(client.frames) == BOTH
            assert {"type": "epoch_changed", "epoch": epoch} in client.frames
    await env.check_history()


# -- entering and leaving degraded mode -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [ProxyMode.REFUSE, ProxyMode.HANG_UP, ProxyMode.SWALLOW])
async def test_degraded_mode(env: FaultEnvironment, mode: ProxyMode) -> None:
    """Clients are notified when degraded mode starts and ends, and then get every event that they missed."""
    cut_off, well = await env.start_replicas(2)
    recorders = await env.connect_clients()
    await env.publish(well, 5)
    epoch = (await health(well))["epoch"]
    for recorder in recorders:
        await recorder.reaches(epoch, 5)
    await env.proxies[0].set_mode(mode)
    report = await wait_for_health(cut_off, status="degraded", is_degraded=True, redis="unreachable")
    assert report["circuit_state"] in ("open", "half_open")
    assert report["circuit"]["opened_at"]
    await wait_for_health(cut_off, listener_healthy=False)
    assert (await cut_off.request("GET", "/health/ready")).status_code == 200
    # a new client is accepted, and notified after its first frame
    newcomer = await env.connect(cut_off, ["nothing.of.this", "event"])
    hello = await newcomer.open_connection.next()
    assert (hello["type"], hello["epoch"], hello["lastSeq"]) == ("connected", epoch, 5)
    assert degraded_notices([await newcomer.open_connection.next()]) == BOTH[:1]
    numbers = await env.publish(well, 40)
    assert numbers == list(range(6, 46))
    await check_conversation(newcomer.open_connection)
    assert await env.publish(cut_off) == [None]
    await env.proxies[0].set_mode(ProxyMode.PASS)
    await env.wait_until_healthy()
    assert not (await health(cut_off))["circuit"]["opened_at"]
    visitor = await env.connect(cut_off)
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()
    for recorder in (recorders[0], recorders[1], newcomer):
        frames = [frame for frame in recorder.frames if frame.get("type") not in ("ping", "pong")]
        assert degraded_notices(frames) == BOTH
        # the notice comes before the missed events, and these come as live frames
        healthy = next(n for n, frame in enumerate(frames) if degraded_notices([frame]) == BOTH[1:])
        assert all(frame["sequence"] <= 5 for frame in frames[:healthy] if "sequence" in frame)
        assert not any("replay" in frame for frame in frames)
    for recorder in (*recorders[2:4], visitor):
        assert degraded_notices(recorder.frames) == []
    criticals = [line for line in cut_off.log.splitlines() if " CRITICAL " in line]
    assert len(criticals) == 1
    assert "failure 5 in a row" in criticals[0]


async def test_resume_without_redis(env: FaultEnvironment) -> None:
    """Without Redis, memory answers resumes at once; older positions wait without delaying anything else."""
    cut_off, well = await env.start_replicas(2, message_buffer_size=20)
    await env.publish(well, 60)
    epoch = (await health(well))["epoch"]
    await wait_for_health(cut_off, sequence=60)
    await env.proxies[0].set_mode(ProxyMode.REFUSE)
    await wait_for_health(cut_off, is_degraded=True)
    async with (
        connected(cut_off.websocket(since=45, epoch=epoch)) as near,
        connected(cut_off.websocket(since=5, epoch=epoch)) as far,
        connected(cut_off.websocket(since=5, epoch=epoch, events="event")) as filtered,
        connected(cut_off.websocket()) as asking,
    ):
        assert (await near.take(type="resync_ack"))["recovered"] is True
        assert near.numbers == list(range(46, 61))
        await asking.next()
        await asking.send({"type": "resync", "data": {"channel": "c", "last_sequence": 10}})
        for client, place in ((near, 60), (far, 5), (filtered, 5)):
            await check_conversation(client)
            assert {"type": "ping", "lastSeq": place, "epoch": epoch} == client.heartbeats[-1]
        await check_conversation(asking)
        await env.publish(well, 10)
        assert far.events == filtered.events == asking.events == []
        await env.proxies[0].set_mode(ProxyMode.PASS)
        for client, since in ((far, 5), (filtered, 5), (asking, 10)):
            ack = await client.take(type="resync_ack")
            assert (ack["recovered"], ack["last_sequence"]) == (True, since)
        for client, numbers in ((near, range(46, 71)), (far, range(6, 71)), (asking, range(11, 71))):
            await client.reached(70)
            assert client.numbers == list(numbers)
        await filtered.reached(70)
        assert {frame["type"] for frame in filtered.events} == {"event"}
    await env.check_history()


# -- the circuit ----------------------------------------------------------------------------------------------------


async def test_circuit_by_the_listener_alone(env: FaultEnvironment) -> None:
    """Without publishes the listener's failures open the circuit at the threshold, and its trials close it again."""
    (replica,) = await env.start_replicas(circuit_failure_threshold=3)
    (proxy,) = env.proxies
    await env.connect_clients()
    await proxy.set_mode(ProxyMode.HANG_UP)
    report = await wait_for_health(replica, circuit_state="open")
    assert report["circuit"]["failure_count"] >= 3
    assert report["circuit"]["last_failure_time"]
    await eventually(lambda: circuit_log(replica).count("half_open") >= 3, PATIENCE)
    await proxy.set_mode(ProxyMode.PASS)
    closed = await wait_for_health(replica, circuit_state="closed", status="healthy")
    assert (closed["circuit"]["failure_count"], closed["circuit"]["opened_at"]) == (0, None)
    # the third trial may be the one that succeeds: it may have been under way when the proxy let data pass again
    assert closed["circuit"]["total_failures"] >= 3 + 2
    assert closed["retry"]["total_attempts"] == 0
    states = circuit_log(replica)
    tries = states.count("half_open")
    assert states == ["open", *["half_open", "open"] * (tries - 1), "half_open", "closed"]
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


async def test_one_trial_at_a_time(env: FaultEnvironment) -> None:
    """While the trial call is under way no other call is made; its success closes the circuit."""
    (replica,) = await env.start_replicas(position_check_seconds=3)
    (proxy,) = env.proxies
    recorders = await env.connect_clients()
    await proxy.set_mode(ProxyMode.HANG_UP)
    await wait_for_health(replica, circuit_state="open")
    await proxy.set_mode(ProxyMode.SWALLOW)
    await wait_for_health(replica, circuit_state="half_open")
    connections = proxy.connections
    begin = time.monotonic()
    for _ in range(3):
        assert await env.publish(replica) == [None]
    assert (await health(replica))["circuit_state"] == "half_open", "the publishes took too long"
    assert time.monotonic() - begin < 3
    assert proxy.connections == connections
    await proxy.set_mode(ProxyMode.PASS)
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()
    for recorder in recorders:
        assert degraded_notices(recorder.frames) == BOTH


async def test_few_connections_during_an_outage(env: FaultEnvironment) -> None:
    """During a long outage a replica makes one connection attempt for each trial, and few when Redis is back."""
    replicas = await env.start_replicas(3)
    await env.connect_clients()
    for proxy in env.proxies:
        await proxy.set_mode(ProxyMode.HANG_UP)
    before = []
    for replica, proxy in zip(replicas, env.proxies, strict=True):
        await wait_for_health(replica, circuit_state="open")
        before.append((circuit_log(replica).count("half_open"), proxy.connections))
    # ten recovery times: 5 s here, five minutes with the default of 30 s
    await eventually(lambda: all(circuit_log(replica).count("half_open") >= 10 for replica in replicas), 2 * PATIENCE)
    for replica, proxy, (trials, connections) in zip(replicas, env.proxies, before, strict=True):
        # one attempt may have started before the circuit opened, and one may not have been logged yet
        assert proxy.connections - connections <= circuit_log(replica).count("half_open") - trials + 2
        assert connections <= 3 + 5 + trials + 1
    for proxy in env.proxies:
        await proxy.set_mode(ProxyMode.PASS)
    returned = [proxy.connections for proxy in env.proxies]
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()
    for proxy, connections in zip(env.proxies, returned, strict=True):
        # for the trial, the subscription and the publishes
        assert proxy.connections - connections <= 4
        assert proxy.listeners == 1


# -- the embedded server ----------------------------------------------------------------------------------------------


async def test_embedded_server_killed(start: ReplicaFactory) -> None:
    """An embedded Valkey that dies is restarted; since its data is lost, clients are told of a new epoch."""
    replica = await asyncio.to_thread(start, position_check_seconds=0.3, circuit_recovery_seconds=0.5)
    history = History()
    recorder, producer = RecordingClient("client"), Producer(history, "m")
    await recorder.connect(replica)
    epochs = [replica.health()["epoch"]]
    async with replica.http() as http:
        for _ in range(2):
            for _ in range(10):
                assert await producer.publish(http, "event")
            await recorder.reaches(epochs[-1], 10)
            os.kill(_embedded_server(replica), signal.SIGKILL)
            await eventually(lambda: replica.health()["epoch"] != epochs[-1], PATIENCE)
            epochs.append((await wait_for_health(replica, status="healthy", listener_healthy=True))["epoch"])
        assert await producer.publish(http, "event") == 1
    await recorder.reaches(epochs[-1], 1)
    await recorder.leave(politely=True)
    assert violations(history, [recorder.record]) == []
    told = [frame["epoch"] for frame in recorder.frames if frame.get("type") == "epoch_changed"]
    assert told == epochs[1:]
    expected = r" CRITICAL kernel\.resilience\.link: "
    expected += r"| ERROR handlers\.server\.embedded: the embedded Valkey server ended with status -9"
    await asyncio.to_thread(replica.stop, tolerate=expected)


def _embedded_server(replica: Replica) -> int:
    """Return the process id of the replica's only child."""
    (child,) = Path(f"/proc/{replica.pid}/task/{replica.pid}/children").read_text().split()
    return int(child)

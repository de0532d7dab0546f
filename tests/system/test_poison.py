"""Invalid data on the channel, in the keys and on sockets: it is skipped, and the next valid event arrives at once."""

import asyncio
import json
import re
from typing import Any

from tests.proxy import ProxyMode
from tests.system.client import connected
from tests.system.fault_environment import FaultEnvironment, degraded_notices, health, wait_for_health
from tests.system.raw_websocket import BINARY, TEXT, raw_websocket

# Position checks are rare, so an event that arrives within AT_ONCE was not found by a check.
RARE_CHECKS = {"position_check_seconds": 10, "supervision_interval_seconds": 600}
AT_ONCE = 8.0


async def publish_valid(env: FaultEnvironment, count: int = 1) -> str:
    """Publish valid events at each replica, and wait until every client has them; returns the epoch."""
    for replica in env.replicas:
        assert None not in await env.publish(replica, count)
    epoch, last = env.server.position
    async with asyncio.timeout(AT_ONCE):
        for recorder in env.recorders:
            await recorder.reaches(epoch, last)
    return epoch


async def check_unharmed(env: FaultEnvironment) -> None:
    """Check that no replica took invalid data for an outage, and that no client received it."""
    for replica in env.replicas:
        report = await wait_for_health(replica, status="healthy", listener_healthy=True)
        assert report["circuit"]["total_failures"] == 0
        assert "poison" not in replica.log
        assert replica.metric("listener_restarts_total") == 0
    await env.check_history()
    for recorder in env.recorders:
        assert degraded_notices(recorder.frames) == []


# -- the channel ---------------------------------------------------------------------------------------------------


def invalid_payloads(epoch: str) -> list[bytes]:
    """Return invalid payloads for the channel; no valid event among them has 4, the next sequence number at first."""
    event = {"id": "x", "type": "alert_deleted", "data": {"id": "poison"}}
    documents: list[Any] = [
        {},
        [],
        None,
        "text",
        {"epoch": epoch},
        {"epoch": epoch, "events": {}},
        {"epoch": epoch, "events": [None]},
        {"epoch": epoch, "events": [{"sequence": 4}]},
        {"epoch": epoch, "events": [event]},
        {"epoch": epoch, "events": [event | {"sequence": "4"}]},
        {"epoch": epoch, "events": [event | {"sequence": 4.5}]},
        {"epoch": epoch, "events": [event | {"sequence": 0}]},
        {"epoch": epoch, "events": [event | {"sequence": -1}]},
        {"epoch": epoch, "events": [event | {"sequence": 1}]},
        {"epoch": epoch, "events": [event | {"sequence": 3}]},
        {"epoch": epoch, "events": [event | {"sequence": 5}]},
        {"epoch": epoch, "events": [event | {"sequence": 1 << 62}]},
        {"epoch": epoch, "events": [event | {"sequence": 1 << 80}]},
        {"epoch": "elsewhere", "events": [event | {"sequence": 4}]},
        {"epoch": "", "events": [event | {"sequence": 4}]},
        {"epoch": "x" * 1000, "events": []},
        {"type": "alert_deleted", "data": {"id": "poison"}},
    ]
    # binary data, and payloads that are slow to reject
    raw = [b"", b"\x00", b"\xff\xfe", b"{", b"[" * 100_000, b" " * 1_000_000, b'{"epoch":"\xff","events":[]}']
    return [json.dumps(document).encode() for document in documents] + raw


async def test_channel(env: FaultEnvironment) -> None:
    """Invalid messages on the channel are skipped and logged once, and the next event arrives at once."""
    await env.start_replicas(2, **RARE_CHECKS)
    recorders = await env.connect_clients()
    epoch = (await health(env.replicas[0]))["epoch"]
    await env.publish(env.replicas[0], 3)
    for number in range(3):
        for document in invalid_payloads(epoch):
            assert env.server.link.publish("security_events", document) == 2
        assert await publish_valid(env) == epoch
        assert env.server.position == (epoch, 5 + 2 * number)
    await check_unharmed(env)
    env.check_unbroken()
    for replica in env.replicas:
        assert len(re.findall("WARNING.*out-of-sequence messages on the Redis channel", replica.log)) == 1
        assert replica.metric("foreign_documents_total") >= len(invalid_payloads(epoch))
    assert "poison" not in json.dumps([recorder.frames for recorder in recorders])


async def test_channel_under_load(env: FaultEnvironment) -> None:
    """Events published between many invalid messages are delivered in order, each once."""
    await env.start_replicas(2)
    await env.connect_clients()
    epoch = await publish_valid(env, 10)
    async with env.load(0.005) as producers:
        for _ in range(5):
            for document in invalid_payloads(epoch):
                # their numbers never follow: a forged event with the very next number could not be detected
                env.server.link.publish("security_events", document)
            await env.wait_until_accepted(producers, 20)
    assert await env.wait_until_delivered() == epoch
    await check_unharmed(env)
    env.check_unbroken()


# -- the keys ------------------------------------------------------------------------------------------------------

POSITION, HISTORY = "{security_events}:position", "{security_events}:history"

# Commands that damage a key (NEXT is the number after the newest), and whether a new epoch must follow.
DAMAGES: dict[str, tuple[list[tuple[str, ...]], bool]] = {
    "position: a string": ([("DEL", POSITION), ("SET", POSITION, "poison")], True),
    "position: a list": ([("DEL", POSITION), ("RPUSH", POSITION, "epoch", "sequence")], True),
    "position: no number": ([("HSET", POSITION, "sequence", "poison")], True),
    "position: a number below 0": ([("HSET", POSITION, "sequence", "-7")], True),
    "position: too large a number": ([("HSET", POSITION, "sequence", "9" * 40)], True),
    "position: an epoch that is no name": ([("HSET", POSITION, "epoch", '","events":[],"poison":"')], True),
    "position: no epoch": ([("HDEL", POSITION, "epoch")], True),
    "position: behind": ([("HSET", POSITION, "sequence", "2")], True),
    "position: fields of others": ([("HSET", POSITION, "poison", "poison")], False),
    "history: a string": ([("DEL", HISTORY), ("SET", HISTORY, "poison")], True),
    "history: a set": ([("DEL", HISTORY), ("SADD", HISTORY, "poison")], True),
    "history: an entry just above": ([("XADD", HISTORY, "NEXT-0", "id", "poison", "event", "poison")], True),
    "history: an entry far above": ([("XADD", HISTORY, "999999999999999-0", "poison", "poison")], True),
    "history: an entry at the very top": ([("XADD", HISTORY, f"{2**64 - 1}-{2**64 - 1}", "poison", "")], True),
    "both": ([("DEL", POSITION, HISTORY), ("SET", POSITION, "poison"), ("SET", HISTORY, "poison")], True),
    "position: far ahead": ([("HSET", POSITION, "sequence", str(10**12))], False),
}


async def test_keys(env: FaultEnvironment) -> None:
    """Unusable keys mean one new epoch, announced to all clients, and publishing continues at once."""
    await env.start_replicas(2, **RARE_CHECKS)
    await env.connect_clients()
    epochs = [await publish_valid(env, 3)]
    for name, (commands, renews) in DAMAGES.items():
        print(name)
        following = str(env.server.position[1] + 1)
        with env.server.link.pipeline(transaction=True) as at_once:
            for command in commands:
                at_once.execute_command(*(word.replace("NEXT", following) for word in command))
            at_once.execute()
        epoch = await publish_valid(env, 3)
        assert (epoch != epochs[-1]) is renews
        epochs += [epoch] * renews
    assert env.server.position[1] == 10**12 + 6
    await check_unharmed(env)
    for recorder in env.recorders:
        assert [frame["epoch"] for frame in recorder.frames if frame.get("type") == "epoch_changed"] == epochs[1:]
        assert len([frame for frame in recorder.frames if frame.get("type") == "gap"]) == 1
    env.tolerate += "| ERROR kernel.listening.position_check: events [0-9]+ to 1000000000000 are lost"


async def test_garbage_in_the_history(env: FaultEnvironment) -> None:
    """An invalid entry in the history is a `gap` for a replica that has to read it, and affects no other."""
    cut_off, well = await env.start_replicas(2)
    recorders = await env.connect_clients()
    await env.publish(well, 5)
    epoch = (await health(well))["epoch"]
    for recorder in recorders:
        await recorder.reaches(epoch, 5)
    await env.proxies[0].set_mode(ProxyMode.REFUSE)
    await wait_for_health(cut_off, is_degraded=True)
    await env.publish(well, 6)
    await wait_for_health(well, sequence=11)
    kept = env.server.link.xrange(HISTORY)
    garbage = {7: {"id": "x", "event": "poison"}, 9: {"poison": b"\xff"}, 10: {"id": "x", "event": "[" * 100_000}}
    with env.server.link.pipeline(transaction=True) as at_once:
        at_once.delete(HISTORY)
        for number, (name, fields) in enumerate(kept, 1):
            at_once.xadd(HISTORY, garbage.get(number, fields), name)
            at_once.xadd(HISTORY, {"id": "poison", "event": "poison"}, f"{number}-3")
        at_once.execute()
    await env.proxies[0].set_mode(ProxyMode.PASS)
    await env.wait_until_healthy()
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    for recorder, gaps in zip(recorders, ([(7, 7), (9, 10)], [(7, 7), (9, 10)], [], []), strict=True):
        assert [(f["from"], f["to"]) for f in recorder.frames if f.get("type") == "gap"] == gaps
    env.tolerate += r"| ERROR kernel.listening.position_check: events (7 to 7|9 to 10) are lost"


async def test_record(env: FaultEnvironment) -> None:
    """An invalid idempotency record is ignored, and the publish succeeds."""
    (replica,) = await env.start_replicas(**RARE_CHECKS)
    await env.connect_clients()
    link = env.server.link
    for number, spoil in enumerate((lambda key: link.rpush(key, "poison"), lambda key: link.set(key, "poison")), 1):
        before = {*link.keys("*:idempotency:*")}
        posted = [("/broadcast/alert/deleted", {"id": f"{number}-{again}"}) for again in range(2)]
        answers = [await replica.post(*posted[0], Idempotency_Key=f"key-{number}")]
        (key,) = {*link.keys("*:idempotency:*")} - before
        link.delete(key)
        spoil(key)
        answers += [await replica.post(*posted[1], Idempotency_Key=f"key-{number}") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202, 202]
        assert [answer.json()["sequence"] for answer in answers] == [2 * number - 1, 2 * number, 2 * number]
        assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, None, "true"]
        for (_, data), answer in zip(posted, answers, strict=False):
            env.history.receipt("alert_deleted", data, answer.json())
    await publish_valid(env)
    await check_unharmed(env)
    env.check_unbroken()


# -- sockets ------------------------------------------------------------------------------------------------------

MESSAGES: tuple[str | bytes, ...] = (
    "",
    "\x00",
    "poison",
    "[" * 60_000,
    '{"type":' * 8_000,
    "1" * 60_000,
    "NaN",
    '{"type":"\\ud800"}',
    '{"type":"poison\\u0000"}',
    '{"type":"subscribe","data":{"events":["poison",null]}}',
    '{"type":"subscribe","data":{"events":["' + "[" * 257 + '"]}}',
    '{"type":"unsubscribe","data":{"events":{"poison":1}}}',
    '{"type":"resync","data":{"last_sequence":1e999}}',
    '{"type":"resync","data":{"last_sequence":' + "9" * 5_000 + "}}",
    '{"type":"resync","data":{"channel":[[]],"last_sequence":0}}',
    '{"type":"resync","data":{"epoch":{},"last_sequence":0}}',
    '{"type":"ack","data":{"sequence":' + "9" * 5_000 + "}}",
    '{"type":"ack","data":{"sequence":-0.0}}',
    b"",
    b"\xff" * 1_000,
    b"\x00{}",
)
PROTOCOL = (b"\x00" * 100, b"\xff" * 100, bytes([0x81, 0x81]) + bytes(4) + b"\xff", b"GET / HTTP/1.1\r\n\r\n")


async def test_sockets(env: FaultEnvironment) -> None:
    """Invalid data on a socket gets an error or a close, and all other clients get the next event."""
    (replica,) = await env.start_replicas(**RARE_CHECKS)
    recorders = await env.connect_clients()
    poisoner = recorders[0].open_connection
    for message in MESSAGES:
        await poisoner.send(message)
        await poisoner.take(type="error")
        await publish_valid(env)
    for data in PROTOCOL:
        async with raw_websocket(replica) as raw:
            raw.send_bytes(data)
            await raw.ended()
        await publish_valid(env)
    async with raw_websocket(replica) as raw, connected(replica.websocket()) as neighbour:
        for opcode in (TEXT, BINARY) * 200:
            raw.send(opcode, b"poison")
        await raw.sent()
        epoch = await publish_valid(env)
        await neighbour.reached(env.server.position[1])
        assert epoch == (await health(replica))["epoch"]
    assert len(poisoner.events) == len(MESSAGES) + len(PROTOCOL) + 1
    await check_unharmed(env)
    env.check_unbroken()

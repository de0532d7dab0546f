"""The states of client.js, row by row as in the table of the protocol, against a server that follows a script."""

from typing import Any

import pytest

from tests.handlers.browser.conftest import Connect
from tests.handlers.browser.scripted_server import Peer, ScriptedServer, ack, event, hello
from tests.javascript import JavaScript, Listener
from tests.waiting import eventually


async def live(server: ScriptedServer, listener: Listener) -> Peer:
    """Let a stream become live at event 10 of epoch `e`."""
    peer = await server.peer()
    await peer.send(hello())
    await listener.becomes("live")
    return peer


async def resumed(server: ScriptedServer, connect: Connect, **options: Any) -> tuple[Listener, Peer]:
    """Let a stream become live, receive event 11 and lose the connection; returns its second one."""
    listener = connect(**options)
    peer = await live(server, listener)
    await peer.send(event(11))
    await listener.has(11)
    await peer.close()
    return listener, await server.peer(2)


def place(listener: Listener) -> tuple[str, int]:
    """Return the position of a stream."""
    assert listener.position is not None
    return listener.position["epoch"], listener.position["sequence"]


# -- connecting and replaying -----------------------------------------------------------------------------------------


async def test_first_connection(server: ScriptedServer, connect: Connect) -> None:
    """Without a position none is sent; `connected` names it, and the stream is live."""
    listener = connect(events=["Alert.*"])
    peer = await server.peer()
    assert peer.path == "/ws/events"
    assert peer.query == {"events": "alert.*"}
    assert listener.states == ["connecting"]
    await peer.send(hello())
    await listener.becomes("connecting", "live")
    assert listener.start == {"epoch": "e", "sequence": 10}
    await peer.send(event(11), event(13))
    await listener.has(11, 13)
    assert place(listener) == ("e", 13)


async def test_resume(server: ScriptedServer, connect: Connect) -> None:
    """The next connection resumes from the last event; repeats are dropped, and the verdict is told."""
    listener, peer = await resumed(server, connect)
    assert peer.position == ("e", "11")
    await peer.send(hello(13), event(11, replay=True), event(12, replay=True))
    await listener.has(11, 12)
    assert listener.states == ["connecting", "live", "waiting", "connecting", "replaying"]
    await peer.send(ack(11), event(13), event(12), event(14))
    await listener.becomes("replaying", "live")
    await listener.has(11, 12, 13, 14)
    assert listener.frames[2] == ack(11)


async def test_other_epoch(server: ScriptedServer, connect: Connect) -> None:
    """If `connected` names another epoch, the replay brings it from its start, and the verdict says so."""
    listener, peer = await resumed(server, connect)
    verdict = ack(11, epoch="f", recovered=False, epoch_changed=True)
    await peer.send(hello(2, "f"), event(1, replay=True), event(2, replay=True), verdict)
    await listener.becomes("replaying", "live")
    await listener.has(11, 1, 2)
    await listener.gets(verdict)
    assert place(listener) == ("f", 2)


async def test_other_epoch_without_events(server: ScriptedServer, connect: Connect) -> None:
    """The verdict moves the stream to another epoch even if nothing of it matched."""
    listener, peer = await resumed(server, connect)
    await peer.send(hello(5, "f"), ack(11, epoch="f", recovered=False, epoch_changed=True), event(6))
    await listener.has(11, 6)
    assert place(listener) == ("f", 6)


@pytest.mark.parametrize("epoch", ["old", ""])
async def test_late_replica(server: ScriptedServer, connect: Connect, epoch: str) -> None:
    """A replica that is not yet in the stream's epoch moves nothing, and its change of epoch is no news."""
    listener, peer = await resumed(server, connect)
    await peer.send(hello(500, epoch), {"type": "ping", "epoch": epoch, "lastSeq": 500})
    await peer.gets({"type": "pong"})
    assert place(listener) == ("e", 11)
    await peer.send({"type": "epoch_changed", "epoch": "e"}, event(12, replay=True))
    await listener.has(11, 12)
    await peer.close()
    peer = await server.peer(3)
    assert peer.position == ("e", "11")
    await peer.send(hello(500, epoch), {"type": "epoch_changed", "epoch": "e"}, event(12, replay=True))
    await peer.send(event(13, replay=True), ack(11))
    await listener.becomes("replaying", "live")
    await listener.has(11, 12, 13)
    assert [frame["type"] for frame in listener.frames if "sequence" not in frame] == ["resync_ack"]


async def test_old_epoch_while_waiting_for_redis(server: ScriptedServer, connect: Connect) -> None:
    """After `connected` without an epoch, events of a new one are not taken for repeats."""
    listener, peer = await resumed(server, connect)
    await peer.send(hello(0, ""), {"type": "epoch_changed", "epoch": "f"}, event(1, replay=True))
    await peer.send(ack(11, epoch="f", recovered=False, epoch_changed=True))
    await listener.has(11, 1)
    assert place(listener) == ("f", 1)


async def test_first_epoch(server: ScriptedServer, connect: Connect) -> None:
    """A stream that starts before Redis was reached is told of the epoch; its position is that of the first event."""
    listener = connect()
    peer = await server.peer()
    await peer.send(hello(0, ""), {"type": "ping", "epoch": "", "lastSeq": 0})
    await peer.gets({"type": "pong"})
    assert listener.position is None
    await peer.send({"type": "epoch_changed", "epoch": "e"}, event(41))
    await listener.has(41)
    assert listener.frames[0]["type"] == "epoch_changed"
    assert place(listener) == ("e", 41)


async def test_ahead(server: ScriptedServer, connect: Connect) -> None:
    """If the number was beyond the newest, the stream goes back to `lastSeq` of `connected`."""
    listener, peer = await resumed(server, connect)
    await peer.send(hello(5), ack(11, recovered=False), event(6))
    await listener.has(11, 6)
    assert listener.states[-1] == "live"
    assert listener.frames[1] == ack(11, recovered=False)
    await peer.close()
    assert (await server.peer(3)).position == ("e", "6")


async def test_too_old(server: ScriptedServer, connect: Connect) -> None:
    """A loss at the start is told with the verdict, once: the next connection does not ask for it again."""
    listener, peer = await resumed(server, connect)
    verdict = ack(11, recovered=False, gap_too_old=True, oldest_available=31)
    await peer.send(hello(30), verdict)
    await listener.becomes("replaying", "live")
    await listener.gets(verdict)
    await peer.close()
    assert (await server.peer(3)).position == ("e", "30")


async def test_lost_before_the_verdict(server: ScriptedServer, connect: Connect) -> None:
    """The next connection resumes from where the replay started, because only the verdict covers all of it."""
    listener, peer = await resumed(server, connect)
    await peer.send(hello(20), event(12, replay=True), {"type": "gap", "from": 13, "to": 14}, event(15, replay=True))
    await listener.has(11, 12, 15)
    await peer.close()
    peer = await server.peer(3)
    assert peer.position == ("e", "11")
    await peer.send(hello(20), event(12, replay=True), {"type": "gap", "from": 13, "to": 14}, event(15, replay=True))
    await peer.send(event(16, replay=True), ack(11))
    await listener.has(11, 12, 15, 16)
    await peer.close()
    assert (await server.peer(4)).position == ("e", "16")
    assert len([frame for frame in listener.frames if frame["type"] == "gap"]) == 1


async def test_replays_that_never_end(server: ScriptedServer, connect: Connect) -> None:
    """After three replays without a verdict the next one starts at the last event; its verdict is not a recovery."""
    listener, peer = await resumed(server, connect)
    for number in (12, 13, 14):
        assert peer.position == ("e", "11")
        await peer.send(hello(20), event(number, replay=True))
        await listener.has(*range(11, number + 1))
        await peer.close()
        peer = await server.peer(number - 9)
    assert peer.position == ("e", "14")
    await peer.send(hello(20), ack(14))
    await listener.becomes("replaying", "live")
    await listener.gets(ack(14, recovered=False))


async def test_failed_connections_during_a_replay(server: ScriptedServer, connect: Connect) -> None:
    """Connections that fail are not replays: the verdict is still about all of the replay, and is told unchanged."""
    listener, peer = await resumed(server, connect, transport="websocket")
    server.refusals = 5
    await peer.send(hello(20), event(12, replay=True))
    await listener.has(11, 12)
    await peer.close()
    peer = await server.peer(3)
    assert peer.position == ("e", "11")
    await peer.send(hello(20), ack(11))
    await listener.becomes("replaying", "live")
    await listener.gets(ack(11))


# -- live -------------------------------------------------------------------------------------------------------------


async def test_heartbeat(server: ScriptedServer, connect: Connect) -> None:
    """Heartbeats are answered, and move the position past events that the patterns exclude."""
    listener = connect()
    peer = await live(server, listener)
    await peer.send({"type": "ping", "epoch": "e", "lastSeq": 40})
    await peer.gets({"type": "pong"})
    await peer.close()
    assert (await server.peer(2)).position == ("e", "40")
    assert listener.frames == []


async def test_gap(server: ScriptedServer, connect: Connect) -> None:
    """A gap moves the position, and is told."""
    listener = connect()
    peer = await live(server, listener)
    gap = {"type": "gap", "from": 11, "to": 20}
    await peer.send(gap, event(21))
    await listener.has(21)
    assert listener.frames[0] == gap
    assert listener.received[0].position == {"epoch": "e", "sequence": 20}


async def test_epoch_changed(server: ScriptedServer, connect: Connect) -> None:
    """A new epoch starts at number 0, and is told."""
    listener = connect()
    peer = await live(server, listener)
    await peer.send({"type": "epoch_changed", "epoch": "f"})
    await eventually(lambda: listener.frames)
    assert listener.received[0].position == {"epoch": "f", "sequence": 0}
    await peer.send(event(1))
    await listener.has(1)
    await peer.close()
    assert (await server.peer(2)).position == ("f", "1")


async def test_seq(server: ScriptedServer, connect: Connect) -> None:
    """The number of an event may be called `seq`."""
    listener = connect()
    peer = await live(server, listener)
    for number in (11, 11, 12):
        await peer.send({"type": "alert_deleted", "data": {"id": "x"}, "seq": number, "requires_ack": True})
    await eventually(lambda: len(listener.frames) == 2)
    assert place(listener) == ("e", 12)


async def test_notices(server: ScriptedServer, connect: Connect) -> None:
    """The service's own notices are messages; answers to commands are not."""
    listener = connect()
    peer = await live(server, listener)
    notice = {"type": "service_status", "data": {"status": "degraded"}, "timestamp": "t"}
    await peer.send(notice, {"type": "pong"}, {"action": "subscribed", "events": ["x"]}, event(11))
    await listener.has(11)
    assert listener.frames == [notice, event(11)]


# -- the end of a connection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1009, 1011, 1012, 1013, 4008])
async def test_close_codes(server: ScriptedServer, connect: Connect, code: int) -> None:
    """Most close codes lead to another connection."""
    listener = connect()
    await (await live(server, listener)).close(code, "why")
    await server.peer(2)
    assert listener.states == ["connecting", "live", "waiting", "connecting"]
    assert listener.statuses[2]["reason"] == "why"


@pytest.mark.parametrize("code", [1008, 4002, 4003])
@pytest.mark.parametrize("phase", ["before the first frame", "live"])
async def test_refused_credentials(server: ScriptedServer, connect: Connect, code: int, phase: str) -> None:
    """Credentials that are refused, or have expired and are fixed, end the stream for good."""
    listener = connect(token="fixed")
    peer = await (live(server, listener) if phase == "live" else server.peer())
    assert peer.query["token"] == "fixed"
    await peer.close(code, "Unauthorized")
    await listener.becomes("closed")
    assert listener.statuses[-1]["reason"] == "Unauthorized"
    await eventually(lambda: listener.ended)
    assert len(server.peers) == 1


@pytest.mark.parametrize("code", [4002, 4003])
async def test_token_function(server: ScriptedServer, connect: Connect, code: int) -> None:
    """A function is asked for another token when one has expired; if it fails, it is asked again."""
    listener = connect(command={"tokens": ["first", None, "second"]})
    peer = await live(server, listener)
    assert peer.query["token"] == "first"
    await peer.close(code)
    peer = await server.peer(2)
    assert peer.query["token"] == "second"
    assert listener.tokens == ["first", None, "second"]
    assert "the token function failed: none left" in [status["reason"] for status in listener.statuses]
    await peer.close(1008)
    await listener.becomes("closed")


async def test_shutdown(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """After `system.shutdown` the stream stays until the server closes it, and connects again at once."""
    javascript.command("random", value=0.99)
    listener = connect()
    peer = await live(server, listener)
    await peer.send({"type": "system.shutdown", "data": {"reconnect": True, "delay_ms": 60_000}}, event(11))
    await listener.has(11)
    await peer.close(1012)
    await server.peer(2)
    assert listener.delays == [0]


async def test_shutdown_without_an_end(server: ScriptedServer, connect: Connect) -> None:
    """If the server does not close the connection at the announced time, the stream gives it up a second later."""
    listener = connect()
    peer = await live(server, listener)
    await peer.send({"type": "system.shutdown", "data": {"reconnect": True, "delay_ms": 100}})
    await server.peer(2)
    assert listener.statuses[2]["reason"] == "the server stops"
    await eventually(lambda: peer.closed)


async def test_half_open(server: ScriptedServer, connect: Connect) -> None:
    """If nothing arrives for two and a half heartbeats, one second each at least, the connection is given up."""
    listener = connect()
    peer = await live(server, listener)
    for _ in range(3):
        await peer.send({"type": "ping", "epoch": "e", "lastSeq": 11})
    assert (await server.peer(2)).position == ("e", "11")
    assert listener.statuses[2]["reason"] == "nothing arrived for 2½ heartbeats"


async def test_back_off(connect: Connect, javascript: JavaScript, server: ScriptedServer) -> None:
    """The delays are random, at most 0.5 s at first, doubled each time up to 30 s; a live stream starts again."""
    javascript.command("random", value=0.001)
    server.refusals = 9
    listener = connect(transport="websocket")
    peer = await live(server, listener)
    most = [delay * 1000 for delay in listener.delays]
    assert most == pytest.approx([500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000])
    await peer.close()
    await server.peer(2)
    assert listener.delays[-1] == pytest.approx(0.5)


async def test_not_json(server: ScriptedServer, connect: Connect) -> None:
    """A message that is not JSON ends the connection, not the program."""
    listener = connect()
    await (await live(server, listener)).send("<html>")
    await server.peer(2)
    assert listener.statuses[2]["reason"] == "what has arrived is not JSON"


async def test_retry_after_an_error(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """A command that was refused for a time is repeated after it, by a new connection; the error is told."""
    listener = connect()
    peer = await live(server, listener)
    javascript.call(listener, "subscribe", ["event"])
    await peer.gets({"type": "subscribe", "data": {"events": ["event"]}})
    error = {"type": "error", "error": "rate_limited", "message": "later", "details": {"retry_after_ms": 150}}
    await peer.send({**error, "error": "validation_error", "details": {}}, error)
    peer = await server.peer(2)
    assert peer.query["events"] == "event"
    assert peer.position == ("e", "10")
    assert listener.delays == [150]
    assert [each["error"] for each in listener.errors] == ["validation_error", "rate_limited"]


@pytest.mark.parametrize("state", ["connecting", "waiting", "replaying", "live"])
async def test_close_in_a_listener(server: ScriptedServer, connect: Connect, state: str) -> None:
    """A status listener may close the stream; nothing happens after that."""
    listener = connect(command={"closesAt": state}, resume={"epoch": "e", "sequence": 9})
    if state != "connecting":
        peer = await server.peer()
        await peer.send(hello(), ack(9))
        await (peer.close() if state == "waiting" else eventually(lambda: peer.closed))
    await eventually(lambda: listener.ended)
    assert listener.states[-2:] == [state, "closed"]
    assert len(server.peers) == (state != "connecting")

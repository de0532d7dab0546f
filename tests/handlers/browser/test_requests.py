"""Requests of client.js: subscriptions, acks, credentials, stored positions, and streams of server-sent events."""

import json
from typing import Any

import pytest

from tests.handlers.browser.conftest import Connect
from tests.handlers.browser.scripted_server import ScriptedServer, ack, event, hello
from tests.handlers.browser.test_states import live, place, resumed
from tests.javascript import JavaScript
from tests.waiting import eventually


def subscribe(*patterns: str) -> dict[str, Any]:
    """Return a command."""
    return {"type": "subscribe", "data": {"events": list(patterns)}}


def unsubscribe(*patterns: str) -> dict[str, Any]:
    """Return a command; without patterns it has no list."""
    return {"type": "unsubscribe", "data": {"events": list(patterns)} if patterns else {}}


def stream(*frames: dict[str, Any] | str) -> tuple[int, dict[str, str], str]:
    """Return a stream of server-sent events that ends: control messages, events, or blocks as they are."""
    blocks = []
    for frame in frames:
        if isinstance(frame, str):
            blocks.append(frame)
        elif "sequence" in frame:
            blocks.append(f"id: e:{frame['sequence']}\ndata: {json.dumps(frame)}\n\n")
        else:
            blocks.append(f"event: {frame['type']}\ndata: {json.dumps(frame)}\n\n")
    return 200, {"Content-Type": "text/event-stream"}, "".join(blocks)


# -- subscriptions ----------------------------------------------------------------------------------------------------


async def test_subscriptions(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """Patterns are changed on the open connection, and a new one has those that are left."""
    listener = connect(events=["a"])
    peer = await live(server, listener)
    javascript.call(listener, "subscribe", ["B", "c"])
    javascript.call(listener, "subscribe", ["b"])
    javascript.call(listener, "subscribe", [])
    javascript.call(listener, "unsubscribe", ["a", "C", "d"])
    await peer.gets(subscribe("b", "c"), unsubscribe("a", "c"))
    await peer.close()
    assert (await server.peer(2)).query["events"] == "b"


async def test_nothing_left(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """If all patterns are removed by name nothing is received, after a reconnect too; a new pattern ends that."""
    listener = connect(events=["a"])
    peer = await live(server, listener)
    javascript.call(listener, "unsubscribe", ["a"])
    await peer.gets(subscribe("-"), unsubscribe("a"))
    await peer.close()
    peer = await server.peer(2)
    assert peer.query["events"] == "-"
    await peer.send(hello(), ack(10))
    await listener.becomes("replaying", "live")
    javascript.call(listener, "subscribe", ["b"])
    await peer.gets(subscribe("b"), unsubscribe("-"))


async def test_everything(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """To unsubscribe without patterns is to receive everything."""
    listener = connect(events=["a"])
    peer = await live(server, listener)
    javascript.call(listener, "unsubscribe")
    await peer.gets(unsubscribe())
    await peer.close()
    assert "events" not in (await server.peer(2)).query


async def test_changed_while_connecting(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """A change between the request and the first frame is made up for."""
    listener = connect(events=["a"])
    peer = await server.peer()
    javascript.call(listener, "subscribe", ["b"])
    javascript.call(listener, "unsubscribe", ["a"])
    await peer.send(hello())
    await peer.gets(subscribe("b"), unsubscribe("a"))


async def test_changed_while_waiting(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """A change while there is no connection goes into the next request."""
    javascript.command("random", value=0.99)
    listener = connect(events=["a"])
    peer = await live(server, listener)
    await peer.close()
    await listener.becomes("waiting")
    javascript.call(listener, "subscribe", ["b"])
    assert (await server.peer(2)).query["events"] == "a,b"


@pytest.mark.parametrize("events", [[""], ["x" * 257], ["a,b"], [f"a{number}" for number in range(101)]])
async def test_invalid_patterns(
    server: ScriptedServer, connect: Connect, javascript: JavaScript, events: list[str]
) -> None:
    """Patterns that the server would not accept are errors: in a query it would take them for none, which is all."""
    refused = connect(events=events)
    listener = connect(events=["a"])
    peer = await live(server, listener)
    javascript.call(listener, "subscribe", events)
    assert listener.threw.startswith("RangeError: ")
    assert refused.threw.startswith("RangeError: ")
    await peer.close()
    assert (await server.peer(2)).query["events"] == "a"


@pytest.mark.parametrize("url", ["ftp://host/", "nothing"])
async def test_invalid_url(connect: Connect, url: str) -> None:
    """A URL that cannot be the service's is an error at once."""
    listener = connect(url)
    assert listener.threw.startswith("TypeError: ")
    assert listener.states == []


async def test_parameters_of_the_url(server: ScriptedServer, connect: Connect) -> None:
    """Patterns and a position in the URL are those to start with; other parameters stay."""
    listener = connect(server.url + "?events=a,b&since=7&epoch=e&format=zlib&x=1#part")
    peer = await server.peer()
    assert peer.query == {"events": "a,b", "since": "7", "epoch": "e", "x": "1"}
    await peer.send(hello(), event(8, replay=True), ack(7))
    await listener.has(8)
    await peer.close()
    assert (await server.peer(2)).query == {"events": "a,b", "since": "8", "epoch": "e", "x": "1"}


# -- acks -------------------------------------------------------------------------------------------------------------


async def test_acks(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """The highest ack of the epoch is sent, and again on each connection."""
    listener = connect()
    peer = await live(server, listener)
    await peer.send(event(11), event(12))
    await listener.has(11, 12)
    javascript.call(listener, "ack", event(12))
    javascript.call(listener, "ack", event(11))
    sent = {"type": "ack", "data": {"sequence": 12}}
    await peer.gets(sent, sent)
    await peer.close()
    peer = await server.peer(2)
    await peer.send(hello(12), ack(12))
    await peer.gets(sent)
    await peer.send({"type": "epoch_changed", "epoch": "f"})
    await eventually(lambda: place(listener) == ("f", 0))
    await peer.send(event(1))
    await eventually(lambda: place(listener) == ("f", 1))
    javascript.call(listener, "ack", event(1))
    await peer.gets(sent, {"type": "ack", "data": {"sequence": 1}})


async def test_ack_of_an_ended_epoch(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """An event that was read late, in an epoch that has ended, is not acknowledged in the next one."""
    listener = connect()
    peer = await live(server, listener)
    javascript.command("pause", name=listener.name)
    await peer.send(
        event(500), {"type": "epoch_changed", "epoch": "f"}, event(1), {"type": "ping", "epoch": "f", "lastSeq": 1}
    )
    await peer.gets({"type": "pong"})
    javascript.call(listener, "ack", event(500))
    javascript.command("proceed", name=listener.name)
    await listener.has(500, 1)
    javascript.call(listener, "ack", event(1))
    await peer.gets({"type": "pong"}, {"type": "ack", "data": {"sequence": 1}})


# -- readers ----------------------------------------------------------------------------------------------------------

MOST = 10_000


async def test_slow_reader(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """A reader that is 10,000 messages late pauses the connection, and gets all of them in the end."""
    listener = connect()
    peer = await live(server, listener)
    javascript.command("pause", name=listener.name)
    numbers = list(range(11, 11 + MOST + 500))
    await peer.send(*map(event, numbers[: MOST // 2]))
    await peer.send(*map(event, numbers[MOST // 2 :]))
    await listener.becomes("live", "waiting")
    assert listener.statuses[-1] == {"state": "waiting", "reason": f"{MOST} messages have not been read yet"}
    await eventually(lambda: peer.closed)
    assert place(listener) == ("e", 11)
    javascript.command("proceed", name=listener.name)
    peer = await server.peer(2)
    last = 11 + MOST
    assert peer.position == ("e", str(last))
    missed = [event(number, replay=True) for number in range(last + 1, numbers[-1] + 1)]
    await peer.send(hello(numbers[-1]), *missed, ack(last))
    await listener.has(*numbers)
    assert place(listener) == ("e", numbers[-1])


async def test_pause_at_the_verdict(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """A verdict that makes the queue full pauses the connection too, and the stream goes on after that."""
    listener = connect(command={"reads": "none"}, resume={"epoch": "e", "sequence": 0})
    peer = await server.peer()
    await peer.send(hello(MOST), *(event(number, replay=True) for number in range(1, MOST)), ack(0))
    await listener.becomes("replaying", "waiting")
    javascript.command("read", name=listener.name)
    peer = await server.peer(2)
    assert peer.position == ("e", str(MOST - 1))
    await listener.has(*range(1, MOST))


async def test_listeners(server: ScriptedServer, connect: Connect) -> None:
    """With a listener for `message` and no loop nothing is kept; events of the other names come in the same order."""
    listener = connect(command={"reads": "listener"})
    peer = await live(server, listener)
    frames = [event(11), {"type": "gap", "from": 12, "to": 13}, event(14), {"type": "epoch_changed", "epoch": "f"}]
    await peer.send(*frames)
    await eventually(lambda: listener.frames == frames)
    assert [each.position["sequence"] for each in listener.received] == [11, 13, 14, 0]


async def test_close_ends_the_loop(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """`close` ends the loop at once, and the connection."""
    listener = connect()
    peer = await live(server, listener)
    javascript.command("pause", name=listener.name)
    await peer.send(event(11), event(12), {"type": "ping", "epoch": "e", "lastSeq": 12})
    await peer.gets({"type": "pong"})
    javascript.call(listener, "close")
    javascript.command("proceed", name=listener.name)
    await eventually(lambda: listener.ended and peer.closed)
    assert listener.numbers == [11]
    assert place(listener) == ("e", 11)


# -- positions that are kept ------------------------------------------------------------------------------------------


async def test_session(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """With `resume: "session"` the next stream with the same URL and patterns starts after what was read."""
    listener = connect(resume="session", events=["a"])
    peer = await live(server, listener)
    javascript.command("pause", name=listener.name)
    await peer.send(event(11), event(12), {"type": "ping", "epoch": "e", "lastSeq": 12})
    await peer.gets({"type": "pong"})
    javascript.call(listener, "close")
    connect(resume="session", events=["b"])
    assert (await server.peer(2)).position == (None, None)
    connect(resume="session", events=["a"])
    assert (await server.peer(3)).position == ("e", "11")


async def test_session_within_a_replay(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """A stream that ends before a verdict leaves it to the next one, which repeats nothing that was read."""
    listener, peer = await resumed(server, connect, resume="session")
    await peer.send(hello(20), event(12, replay=True))
    await listener.has(11, 12)
    javascript.call(listener, "close")
    following = connect(resume="session")
    peer = await server.peer(3)
    assert peer.position == ("e", "11")
    await peer.send(hello(20), event(12, replay=True), event(13, replay=True), ack(11))
    await following.has(13)


@pytest.mark.parametrize("text", ["{", "null", "5", '{"epoch":"e"}', '{"epoch":"e","sequence":-1}'])
async def test_damaged_storage(server: ScriptedServer, connect: Connect, javascript: JavaScript, text: str) -> None:
    """If what is stored is not a position, the stream starts with the next event, and stores again."""
    key = f"event-broadcaster:{server.url} "
    javascript.command("store", key=key, value=text)
    listener = connect(resume="session")
    peer = await live(server, listener)
    assert peer.position == (None, None)
    javascript.call(listener, "close")
    javascript.command("stored", name=listener.name)
    assert listener.stored is not None
    assert json.loads(listener.stored[key]) == {"epoch": "e", "sequence": 10, "from": None}


async def test_position_of_the_application(server: ScriptedServer, connect: Connect) -> None:
    """`resume` may be a position, also without an epoch, whose number the first epoch does not make void."""
    listener = connect(resume={"sequence": 7})
    peer = await server.peer()
    assert peer.position == (None, "7")
    await peer.send(hello(), event(7, replay=True), event(8, replay=True), ack(7))
    await listener.has(8)
    assert place(listener) == ("e", 8)


# -- credentials and server-sent events -------------------------------------------------------------------------------


async def test_key(server: ScriptedServer, connect: Connect) -> None:
    """A WebSocket sends a key as a subprotocol, a stream as a header."""
    listener = connect(apiKey="k/ü+y=")
    peer = await live(server, listener)
    assert peer.headers["Sec-WebSocket-Protocol"] == "api-key-b64.ay_DvCt5PQ"
    server.answers = [stream(hello())]
    connect(apiKey="k+y=", transport="sse", token="t")
    peer = await server.peer(2)
    assert peer.headers["X-API-Key"] == "k+y="
    assert peer.headers["Authorization"] == "Bearer t"
    assert peer.query == {}


async def test_falls_back(server: ScriptedServer, connect: Connect) -> None:
    """After two WebSockets that could not be opened, the stream reads `/events`; when that ends it tries one again."""
    server.refusals = 2
    heartbeat = "id: e:40\n\n"
    server.answers = [stream("retry: 1000\n\n", hello(), ": comment\n\n", event(11), event(11), heartbeat)]
    listener = connect(events=["a"])
    peer = await server.peer()
    assert (peer.path, peer.query) == ("/events", {"events": "a"})
    assert peer.headers["Accept"].startswith("text/event-stream")
    await listener.has(11)
    peer = await server.peer(2)
    assert (peer.path, peer.position) == ("/ws/events", ("e", "40"))


async def test_stream_resumes(server: ScriptedServer, connect: Connect, javascript: JavaScript) -> None:
    """A stream resumes from its position, and is opened again for other patterns."""
    server.answers = [stream(hello(), event(11)), stream(hello(12), event(12, replay=True), ack(11))]
    server.answers.append((503, {"Retry-After": "1"}, '{"detail":"The server stops."}'))
    listener = connect(transport="sse")
    await listener.becomes("replaying", "live", "waiting", "connecting", "waiting")
    assert [peer.position for peer in server.peers] == [(None, None), ("e", "11"), ("e", "12")]
    assert listener.numbers == [11, 12]
    assert listener.statuses[-1] == {"state": "waiting", "reason": "503 The server stops.", "delay": 1000}
    server.answers.append((403, {}, '{"detail":"The origin is not allowed."}'))
    javascript.call(listener, "subscribe", ["b"])
    await listener.becomes("connecting", "closed")
    assert server.peers[-1].query["events"] == "b"
    assert listener.statuses[-1]["reason"] == "403 The origin is not allowed."


@pytest.mark.parametrize(
    "expired", [(401, {}, "{}"), stream(hello(), {"type": "closing", "code": 4002, "reason": "expired"})]
)
async def test_stream_with_an_expired_token(
    server: ScriptedServer, connect: Connect, expired: tuple[int, dict[str, str], str]
) -> None:
    """When a token has expired a function is asked for another one; a fixed one ends the stream."""
    server.answers = [expired, expired]
    listener = connect(transport="sse", command={"tokens": ["first", "second"]})
    await server.peer(2)
    assert [peer.headers["Authorization"] for peer in server.peers] == ["Bearer first", "Bearer second"]
    await eventually(lambda: max(listener.delays) >= 60_000)  # the script has ended
    server.answers = [expired]
    fixed = connect(transport="sse", token="fixed")
    await fixed.becomes("closed")


async def test_slow_stream(server: ScriptedServer, connect: Connect) -> None:
    """A stream that was too slow is told what is lost as it ends, and does not ask for it again."""
    verdict = ack(11, recovered=False, gap_too_old=True, oldest_available=31)
    server.answers = [stream(hello(), event(11), verdict), (404, {"Retry-After": "60"}, "")]
    listener = connect(transport="sse")
    await eventually(lambda: len(server.peers) == 2)
    assert server.peers[-1].position == ("e", "30")
    await listener.gets(verdict)


async def test_stream_cut_within_a_message(server: ScriptedServer, connect: Connect) -> None:
    """Half a message at the end of a stream is not used."""
    server.answers = [stream(hello(), event(11), 'id: e:12\ndata: {"type":"alert'), (404, {"Retry-After": "60"}, "")]
    listener = connect(transport="sse")
    await eventually(lambda: len(server.peers) == 2)
    assert server.peers[-1].position == ("e", "11")
    assert listener.numbers == [11]

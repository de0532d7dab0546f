"""A model-based test: two replicas, four clients and one Redis, with events and faults in any order (Hypothesis).

Everything but the sockets is real, and time is virtual. Announcements may be lost, delayed or repeated, Redis may be
trimmed, emptied or replaced by a lagging copy. Afterwards the history checker must find that every client got every
event that it must get, once and in order, and was told of every loss. The examples are always the same, except with
`MODEL_EXAMPLES=5000 pytest tests/kernel/test_model.py`.
"""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kernel import BroadcasterConfig, EventBroadcaster, PublishOptions, ReplayedReceipt
from kernel.clients import Client, Patterns, Resume
from kernel.clients.patterns import EVERYTHING
from kernel.errors import BroadcasterError
from kernel.log.envelope import encode_data, encode_tail
from kernel.log.transport import Outgoing
from kernel.messages.decoding import decode_message
from kernel.observer import TraceContext
from kernel.position import NOWHERE, Fence, Position
from tests.fakes import FakeRedis, FakeSink
from tests.history import ClientRecord, Connection, History, Place, Reader, violations
from tests.kernel.replicas import WIRE, PausableTransport
from tests.system.producers import marked
from tests.virtual_time import VirtualTimeLoop

_T = TypeVar("_T")

KINDS = ("event", "alert_created", "camera_status")
FILTERS: tuple[list[str] | None, ...] = (None, ["event"], ["alert.*", "camera.*"])
CALLS = ("publish", "position", "read")
CONFIG = BroadcasterConfig(message_buffer_size=5, chunk_bytes=1000)

replicas = st.integers(0, 1)
clients = st.integers(0, 3)


class Recording(FakeRedis):
    """A Redis that records its announcements, so that they can be announced again."""

    def __init__(self) -> None:
        super().__init__()
        self.announced: list[bytes] = []
        self.gone: dict[str, int] = {}  # the highest number of each epoch that has left the history

    def trim(self, size: int) -> None:
        """Trim the history, and record what was removed."""
        before = {*self.history}
        super().trim(size)
        if before - {*self.history}:
            self.gone[self.place.epoch] = max(before - {*self.history})

    def announce(self, payload: bytes) -> int:
        """Announce events, and record the payload."""
        self.announced.append(payload)
        return super().announce(payload)


class Ear(FakeSink):
    """A sink without assertions of its own; the history checker checks its messages."""

    def _check(self, message: dict[str, Any]) -> None:
        pass


class Party:
    """A client that resumes at each reconnect; each change of its patterns starts a new record for the checker."""

    def __init__(self, number: int) -> None:
        self._name = f"client {number}"
        self.patterns = FILTERS[number % len(FILTERS)]
        self.closed_cases: list[tuple[ClientRecord, Place]] = []
        self.client: Client | None = None
        self.hub: EventBroadcaster | None = None
        self._begin()

    def _begin(self) -> None:
        self.seen = ClientRecord(self._name, self.patterns)
        self._reader = Reader()
        self._read = 0

    @property
    def sink(self) -> Ear:
        """The sink of the current connection."""
        assert self.client is not None
        assert isinstance(self.client.sink, Ear)
        return self.client.sink

    @property
    def open(self) -> bool:
        """True while it is connected."""
        return self.client is not None and self.sink.closed is None

    def connect(self, hub: EventBroadcaster, room: int | None) -> None:
        """Connect, resuming from the current position if there is one."""
        since, epoch = self._reader.sequence, self._reader.epoch
        resume = None if since is None else Resume("events", since, epoch)
        sink = Ear(room)
        self.seen.connections.append(Connection(str(id(hub)), since, "" if since is None else epoch, sink.messages))
        self._reader.connect(since)
        self._read = 0
        patterns = EVERYTHING if self.patterns is None else Patterns.of(self.patterns)
        client = hub.connect(sink, WIRE, patterns=patterns, resume=resume)
        self.client, self.hub = client, hub
        sink.on_blocked = lambda: hub.hub.fall_behind(client)
        if sink.blocked:
            hub.hub.fall_behind(client)

    def leave(self) -> None:
        """Disconnect."""
        if self.client is not None:
            assert self.hub is not None
            self.hub.disconnect(self.client)
            self.catch_up()
            self.client = None

    def catch_up(self) -> None:
        """Advance the position over the messages that have arrived."""
        frames = self.seen.connections[-1].frames
        for frame in frames[self._read :]:
            self._reader.take(frame)
        self._read = len(frames)

    def stands_at(self, epoch: str, sequence: int) -> bool:
        """Return True if its position is in this epoch, at `sequence` or later."""
        self.catch_up()
        return self._reader.epoch == epoch and (self._reader.sequence or 0) >= sequence

    def heartbeat(self) -> None:
        """Let it get a heartbeat."""
        assert self.hub is not None
        assert self.client is not None
        self.hub.hub.heartbeat(self.client)

    def resync(self) -> None:
        """Send a resync; the checker is given what follows as another connection."""
        assert self.client is not None
        assert self.hub is not None
        self.catch_up()
        since, epoch = self._reader.sequence, self._reader.epoch
        # the checker expects at most one replay in each connection
        if since is None or self._reader.replaying:
            return
        self._cut(since, epoch)
        asked = {"type": "resync", "last_sequence": since, "epoch": epoch}
        self.hub.hub.receive(self.client, json.dumps(asked))

    def subscribe(self, patterns: list[str]) -> None:
        """Replace the patterns; a new record starts with the reply, at the position of that moment."""
        assert self.client is not None
        assert self.hub is not None
        hub, client = self.hub.hub, self.client
        self.catch_up()
        if client.resumes or client.place.epoch == "" or self._reader.replaying:
            return
        unwanted = [] if self.patterns is None else sorted({*self.patterns} - {*patterns})
        hub.receive(client, json.dumps({"type": "subscribe", "data": {"events": patterns}}))
        # both commands are handled in one step, so no event comes between them
        if unwanted:
            hub.receive(client, json.dumps({"type": "unsubscribe", "data": {"events": unwanted}}))
        place = Place(*client.place)
        for _ in range(2 if unwanted else 1):
            assert "action" in self.sink.messages.pop()
        self.heartbeat()
        self.catch_up()
        self.closed_cases.append((self.seen, place))
        self.patterns = patterns
        self._begin()
        self._cut(None, "")
        self.catch_up()

    def _cut(self, since: int | None, epoch: str) -> None:
        """Record what follows as another connection."""
        assert self.client is not None
        place, sink = self.client.place, self.sink
        frames: list[dict[str, Any]] = [{"type": "connected", "epoch": place.epoch, "lastSeq": place.sequence}]
        sink.messages = frames
        self.seen.connections.append(Connection(str(id(self.hub)), since, epoch, frames))
        self._reader.connect(since)
        self._read = 0


class Model(RuleBasedStateMachine):
    """The rules: each is one event or fault; `settle` repairs everything and runs the checker."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.redis = Recording()
        self.history = History()
        self.parties = [Party(number) for number in range(4)]
        self.publishes: set[asyncio.Task[None]] = set()
        self.receipts: dict[str, object] = {}
        self.count = 0
        self.hubs: list[EventBroadcaster] = []
        self.transports: list[PausableTransport] = []
        self.dumps: list[tuple[Position, dict[int, tuple[str, bytes]]]] = []

    def run(self, what: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(what)

    @initialize(kept=st.integers(0, 12))
    def begin(self, kept: int) -> None:
        """Start two replicas, publish a few events, and connect a client to each replica."""
        self.redis.history_size = 30
        for at in range(2):
            self._start(at)
        for _ in range(kept):
            self.publish(0, "event", 1, "")
        for number, party in enumerate(self.parties[:2]):
            self.run(_call(party.connect, self.hubs[number], None))

    def _start(self, at: int) -> None:
        """Start a replica, in place of an earlier one if there is one."""
        transport = PausableTransport(self.redis)
        hub = EventBroadcaster(transport, CONFIG, clock=self.loop.time, elapsed=self.loop.time)
        self.run(hub.start())
        self.transports[at:], self.hubs[at:] = [transport, *self.transports[at + 1 :]], [hub, *self.hubs[at + 1 :]]

    # -- producers

    @rule(at=replicas, kind=st.sampled_from(KINDS), size=st.sampled_from([1, 1, 1, 3, 40]), key=st.sampled_from("  k"))
    def publish(self, at: int, kind: str, size: int, key: str) -> None:
        """Publish at this replica, sometimes under a key that was used before."""
        batch = []
        for _ in range(size):
            self.count += 1
            data = marked(kind, str(self.count))
            self.history.unknown(kind, data)
            batch.append((kind, data))
        task = self.loop.create_task(self._publish(self.hubs[at], batch, key.strip()))
        self.publishes.add(task)
        task.add_done_callback(self.publishes.discard)
        self.turn(10)

    async def _publish(self, hub: EventBroadcaster, batch: list[tuple[str, dict[str, Any]]], key: str) -> None:
        messages = [decode_message(kind, json.dumps(data).encode()) for kind, data in batch]
        try:
            receipts = await hub.broadcast_batch(messages, options=PublishOptions(idempotency_key=key or None))
        except BroadcasterError:
            return
        if isinstance(receipts[0], ReplayedReceipt):
            return
        for (kind, data), receipt in zip(batch, receipts, strict=True):
            self.history.receipt(kind, data, {"epoch": receipt.epoch, "sequence": receipt.sequence})

    # -- Redis and the way to it

    @rule(deaf=st.booleans())
    def lose_announcements(self, deaf: bool) -> None:
        """Let subscriptions receive nothing, or receive again."""
        self.redis.deaf = deaf

    @rule()
    def hold_announcements(self) -> None:
        """Hold announcements back."""
        self.redis.release()
        self.redis.hold()

    @rule()
    def release_announcements(self) -> None:
        """Deliver the announcements that were held back."""
        self.redis.release()

    @precondition(lambda self: self.redis.announced)
    @rule(back=st.integers(1, 5), twice=st.booleans())
    def announce_again(self, back: int, twice: bool) -> None:
        """Repeat an old announcement."""
        for _ in range(1 + twice):
            self.redis.announce(self.redis.announced[-min(back, len(self.redis.announced))])

    @rule(
        payload=st.sampled_from(
            [b"nonsense", b"{}", b'{"epoch":"x","events":[{"sequence":9,"id":"f","type":"event","data":{}}]}']
        )
    )
    def announce_foreign(self, payload: bytes) -> None:
        """Publish an invalid message on the channel."""
        FakeRedis.announce(self.redis, payload)

    @rule(after=st.booleans(), count=st.integers(1, 3))
    def fail(self, after: bool, count: int) -> None:
        """Let the next calls fail, or lose their answers."""
        self.redis.fail(count, after=after)

    @rule(at=replicas, size=st.integers(1, 3))
    def lose_an_answer(self, at: int, size: int) -> None:
        """Let the next publish take effect and lose its answer."""
        self.redis.fail(after=True)
        self.publish(at, "event", size, "")

    @rule(down=st.booleans())
    def go_down(self, down: bool) -> None:
        """Make Redis unreachable, or reachable again."""
        self.redis.down = down

    @rule()
    def hang_up(self) -> None:
        """Close every subscription."""
        self.redis.hang_up()

    @rule(at=replicas, name=st.sampled_from(CALLS), answers=st.booleans())
    def hold_calls(self, at: int, name: str, answers: bool) -> None:
        """Hold back a replica's calls of one kind, or their answers."""
        transport = self.transports[at]
        (transport.after if answers else transport.before)[name].clear()

    @rule(at=replicas)
    def release_calls(self, at: int) -> None:
        """Let the calls that were held back continue."""
        for gate in self._gates(at):
            gate.set()

    def _gates(self, at: int) -> Iterator[asyncio.Event]:
        transport = self.transports[at]
        yield from (*transport.before.values(), *transport.after.values())

    @rule(size=st.integers(0, 8))
    def trim(self, size: int) -> None:
        """Trim the history."""
        self.redis.trim(size)

    @rule(at=replicas, size=st.sampled_from([1, 3, 40]), kept=st.integers(0, 2))
    def lose_for_good(self, at: int, size: int, kept: int) -> None:
        """Trim events of which no replica has received an announcement."""
        deaf, self.redis.deaf = self.redis.deaf, True
        self.publish(at, "event", size, "")
        self.redis.trim(kept)
        self.redis.deaf = deaf

    @rule()
    def flush(self) -> None:
        """Delete all data in Redis."""
        self.redis.flush()

    @rule(back=st.integers(1, 6))
    def fail_over(self, back: int) -> None:
        """Let a lagging copy take over."""
        # Numbers that no replica has delivered may be used again; the service promises nothing else.
        self.settle()
        self.redis.rewind(max(0, self.redis.place.sequence - back))
        self.history.fork(*self.redis.place)

    @rule(back=st.integers(1, 6), others=st.integers(1, 12), announced=st.booleans())
    def fork_in_place(self, back: int, others: int, announced: bool) -> None:
        """Redis goes back while subscriptions live on, and another publisher adds others, announced or not."""
        self.settle()
        self.redis.rewind(max(0, self.redis.place.sequence - back))
        self.history.fork(*self.redis.place)
        self.redis.deaf = not announced
        events = []
        for _ in range(others):
            self.count += 1
            data = marked("event", str(self.count))
            self.history.unknown("event", data)
            message = decode_message("event", json.dumps(data).encode())
            id = f"other-{self.count}"
            events.append((id, encode_tail(message, encode_data(message), id, TraceContext(None, None, None), 0.0)))
        self.redis.run(Fence(NOWHERE, ""), Outgoing(events[0][0], None, events))
        self.redis.deaf = False
        self.turn(10)

    @rule()
    def dump(self) -> None:
        """A copy of everything is put aside."""
        self.dumps.append((self.redis.place, dict(self.redis.history)))

    @precondition(lambda self: self.dumps)
    @rule(back=st.integers(1, 5))
    def restore(self, back: int) -> None:
        """A copy is put back, maybe of an epoch that all replicas have left."""
        self.settle()
        self.redis.place, history = self.dumps[-min(back, len(self.dumps))]
        self.redis.history = dict(history)
        self.redis.records.clear()
        self.history.fork(*self.redis.place)

    @rule(at=replicas, sizes=st.lists(st.sampled_from([1, 3, 40]), min_size=2, max_size=6))
    def queue_behind_a_partition(self, at: int, sizes: list[int]) -> None:
        """Publishes gather while Redis does not answer; the calls that were given up arrive afterwards."""
        self.hold_calls(at, "publish", False)
        for size in sizes:
            self.publish(at, "event", size, "")
        self.wait(6.0)
        self.release_calls(at)

    # -- clients

    @rule(who=clients, at=replicas, room=st.sampled_from([None, None, 0, 800]), strikes=st.booleans())
    def connect(self, who: int, at: int, room: int | None, strikes: bool) -> None:
        """Connect a client, perhaps with a heartbeat at once or with a small socket buffer."""

        def come() -> None:
            self.parties[who].connect(self.hubs[at], room)
            if strikes and self._heard(who):
                self.parties[who].heartbeat()

        self.run(_call(self.parties[who].leave))
        self.run(_call(come))

    @rule(who=clients, at=replicas, kind=st.sampled_from(KINDS), size=st.sampled_from([1, 3, 40]))
    def miss_something(self, who: int, at: int, kind: str, size: int) -> None:
        """Publish while a client is away; it gets a heartbeat as soon as it is back."""
        self.run(_call(self.parties[who].leave))
        self.publish(at, kind, size, "")
        self.connect(who, at, None, True)

    @rule(who=clients)
    def vanish(self, who: int) -> None:
        """Disconnect a client."""
        self.run(_call(self.parties[who].leave))

    @rule(who=clients, room=st.sampled_from([0, 800]))
    def slow_down(self, who: int, room: int) -> None:
        """Let a client stop reading."""
        if self.parties[who].open:
            self.parties[who].sink.room = room

    @rule(who=clients)
    def read(self, who: int) -> None:
        """Let a client read everything."""
        if self.parties[who].open:
            self.run(_call(self.parties[who].sink.drain))

    @rule(who=clients)
    def heartbeat(self, who: int) -> None:
        """Send a heartbeat to a client."""
        if self._heard(who):
            self.run(_call(self.parties[who].heartbeat))

    @rule(who=clients)
    def resync(self, who: int) -> None:
        """Let a client send a resync."""
        if self._heard(who):
            self.run(_call(self.parties[who].resync))

    @rule(who=clients, patterns=st.sampled_from(FILTERS[1:]))
    def subscribe(self, who: int, patterns: list[str]) -> None:
        """Let a client change its patterns."""
        if self._heard(who):
            self.run(_call(self.parties[who].subscribe, patterns))

    def _heard(self, who: int) -> bool:
        """True if the client is connected and its messages are read, which they are not while its socket is full."""
        return self.parties[who].open and not self.parties[who].sink.blocked

    # -- replicas and time

    @precondition(lambda self: not self.redis.down)
    @rule(at=replicas)
    def restart(self, at: int) -> None:
        """Stop a replica, and start another in its place."""
        self.release_calls(at)
        for party in self.parties:
            if party.hub is self.hubs[at]:
                self.run(_call(party.leave))
        self.run(self.hubs[at].stop())
        self.redis.forget_faults()
        self._start(at)
        # a new replica does not know which epochs were left before it started
        self.dumps.clear()

    @rule(turns=st.integers(1, 30))
    def turn(self, turns: int) -> None:
        """Let the loop run for a few turns."""
        self.run(_turns(turns))

    @rule(seconds=st.sampled_from([0.5, 6.0, 40.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.run(asyncio.sleep(seconds))

    @rule()
    def settle(self) -> None:
        """Repair everything; then every client must get every event, and the checker must find no violation."""
        redis = self.redis
        redis.deaf = redis.down = False
        redis.release()
        redis.forget_faults()
        for at in range(2):
            self.release_calls(at)
        self.run(self._healed())
        assert violations(self._promised(), [party.seen for party in self.parties]) == []
        for party in self.parties:
            for seen, place in party.closed_cases:
                assert violations(_until(self._promised(), seen, place), [seen]) == []

    def _promised(self) -> History:
        """Return the events that clients must get.

        A `resync_ack` with `epoch_changed` comes after a replay of what the history still has; earlier events are not
        promised. A client that is disconnected before its `resync_ack` is not told of them: the verdict comes last.
        """
        cases = [case for party in self.parties for case in (party.seen, *(seen for seen, _ in party.closed_cases))]
        frames = [frame for case in cases for each in case.connections for frame in each.frames]
        renewed = {frame["epoch"] for frame in frames if frame.get("epoch_changed")}
        for each in (each for case in cases for each in case.connections if each.since is not None):
            if not any(frame.get("type") == "resync_ack" for frame in each.frames):
                renewed |= {each.epoch, *(frame["epoch"] for frame in each.frames if "epoch" in frame)}
        gone = {epoch: last for epoch, last in self.redis.gone.items() if epoch in renewed}
        accepted = {at: each for at, each in self.history.accepted.items() if at.sequence > gone.get(at.epoch, 0)}
        return replace(self.history, accepted=accepted)

    async def _healed(self) -> None:
        deadline = self.loop.time() + 600
        # twice, because the first position checks may find losses that are announced afterwards
        for _ in range(2):
            await asyncio.sleep(12)
            while not self._all_there():
                for number, party in enumerate(self.parties):
                    if party.client is None or not party.open:
                        party.leave()
                        party.connect(self.hubs[number % 2], None)
                    party.sink.room = None
                    party.sink.drain()
                assert self.loop.time() < deadline, f"{redis_state(self)}"
                await asyncio.sleep(1)

    def _all_there(self) -> bool:
        place = self.redis.place
        return (
            not self.publishes
            and all((hub.epoch, hub.sequence) == place for hub in self.hubs)
            and all(party.open and not party.sink.blocked for party in self.parties)
            and all(hub.is_listener_healthy() for hub in self.hubs)
            and len(self.redis.ears) == len(self.hubs)
            and all(party.client is not None and party.client.place == place for party in self.parties)
        )

    def teardown(self) -> None:
        """Settle, and check that no task is left."""
        if self.hubs:
            try:
                self.settle()
            finally:
                for hub in self.hubs:
                    self.run(hub.stop())
                self.run(_turns(5))
                left = asyncio.all_tasks(self.loop)
                self.loop.close()
            assert not left, "tasks are left"


def redis_state(model: Model) -> str:
    """Return the state of all parts, for an assertion message."""
    hubs = [(hub.epoch, hub.sequence, hub.get_circuit_state().state, hub.is_listener_healthy()) for hub in model.hubs]
    parties = [(p.client and p.client.place, p.client and p.client.delivery, p.open) for p in model.parties]
    return f"Redis {model.redis.place}, replicas {hubs}, clients {parties}, {len(model.publishes)} publishes"


def _until(history: History, seen: ClientRecord, place: Place) -> History:
    """Return the history up to the position at which this client changed its patterns."""
    epochs = [fact["epoch"] for each in seen.connections for fact in each.frames if "epoch" in fact]
    before = {*epochs} - {place.epoch}
    accepted = {
        at: each
        for at, each in history.accepted.items()
        if at.epoch in before or (at.epoch == place.epoch and at.sequence <= place.sequence)
    }
    return replace(history, accepted=accepted, faults=[])


async def _call(what: Callable[..., object], *arguments: object) -> None:
    what(*arguments)


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "0"))

TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=EXAMPLES or 80,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    # shrinking takes many times longer than finding a failure, so only do it by hand
    phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)

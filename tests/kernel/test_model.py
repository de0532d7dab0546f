"""Two replicas, their clients and one Redis, in any order of events that Hypothesis can think of.

Everything but the sockets is real, time is virtual, and the history checker judges: whatever was lost, held up,
announced twice, trimmed, forked or begun anew, in the end every client has what it is owed, once and in order, and
was told of every loss. The examples are always the same, but for
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
from kernel.messages.decoding import decode_message
from tests.fakes import FakeRedis, FakeSink
from tests.kernel.replicas import WIRE, PausableTransport
from tests.system.history import ClientRecord, Connection, History, Place, Reader, violations
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
    """A Redis that remembers what it announced, so that it can be announced again."""

    def __init__(self) -> None:
        super().__init__()
        self.announced: list[bytes] = []
        self.gone: dict[str, int] = {}  # the highest number of each epoch that has left the history

    def trim(self, size: int) -> None:
        """As ever, and remember it."""
        before = {*self.history}
        super().trim(size)
        if before - {*self.history}:
            self.gone[self.place.epoch] = max(before - {*self.history})

    def announce(self, payload: bytes) -> int:
        """As ever, and remember it."""
        self.announced.append(payload)
        return super().announce(payload)


class Ear(FakeSink):
    """A sink that leaves the judgement to the checker."""

    def _check(self, message: dict[str, Any]) -> None:
        pass


class Party:
    """A client that resumes wherever it comes back; each change of its patterns begins a case of its own."""

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
        """Its socket."""
        assert self.client is not None
        assert isinstance(self.client.sink, Ear)
        return self.client.sink

    @property
    def open(self) -> bool:
        """Whether it is connected."""
        return self.client is not None and self.sink.closed is None

    def connect(self, hub: EventBroadcaster, room: int | None) -> None:
        """Come, or come back."""
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
        """Be gone."""
        if self.client is not None:
            assert self.hub is not None
            self.hub.disconnect(self.client)
            self.catch_up()
            self.client = None

    def catch_up(self) -> None:
        """Read what has come."""
        frames = self.seen.connections[-1].frames
        for frame in frames[self._read :]:
            self._reader.take(frame)
        self._read = len(frames)

    def stands_at(self, epoch: str, sequence: int) -> bool:
        """Whether it has everything up to there."""
        self.catch_up()
        return self._reader.epoch == epoch and (self._reader.sequence or 0) >= sequence

    def heartbeat(self) -> None:
        """Its clock strikes."""
        assert self.hub is not None
        assert self.client is not None
        self.hub.hub.heartbeat(self.client)

    def resync(self) -> None:
        """Ask for what was missed on the same connection: for the checker, another one."""
        assert self.client is not None
        assert self.hub is not None
        self.catch_up()
        since, epoch = self._reader.sequence, self._reader.epoch
        # to the checker a replay belongs to a connection: one after the other
        if since is None or self._reader.replaying:
            return
        self._cut(since, epoch)
        asked = {"type": "resync", "last_sequence": since, "epoch": epoch}
        self.hub.hub.receive(self.client, json.dumps(asked))

    def subscribe(self, patterns: list[str]) -> None:
        """Ask for nothing but these: from the reply on a new case, whose beginning the place at that moment is."""
        assert self.client is not None
        assert self.hub is not None
        hub, client = self.hub.hub, self.client
        self.catch_up()
        if client.resumes or client.place.epoch == "" or self._reader.replaying:
            return
        unwanted = [] if self.patterns is None else sorted({*self.patterns} - {*patterns})
        hub.receive(client, json.dumps({"type": "subscribe", "data": {"events": patterns}}))
        # the set is what was asked for once the second reply has come; nothing happens between the two
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
        """Let what comes from here on be another connection's."""
        assert self.client is not None
        place, sink = self.client.place, self.sink
        frames: list[dict[str, Any]] = [{"type": "connected", "epoch": place.epoch, "lastSeq": place.sequence}]
        sink.messages = frames
        self.seen.connections.append(Connection(str(id(self.hub)), since, epoch, frames))
        self._reader.connect(since)
        self._read = 0


class Model(RuleBasedStateMachine):
    """What may happen, one thing at a time; `settle` holds the service to its word."""

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

    def run(self, what: Coroutine[Any, Any, _T]) -> _T:
        """Let something happen."""
        return self.loop.run_until_complete(what)

    @initialize(kept=st.integers(0, 12))
    def begin(self, kept: int) -> None:
        """Two replicas on a Redis that has had a few events, and a client on each."""
        self.redis.history_size = 30
        for at in range(2):
            self._start(at)
        for _ in range(kept):
            self.publish(0, "event", 1, "")
        for number, party in enumerate(self.parties[:2]):
            self.run(_call(party.connect, self.hubs[number], None))

    def _start(self, at: int) -> None:
        """Start a replica; it may take the place of another."""
        transport = PausableTransport(self.redis)
        hub = EventBroadcaster(transport, CONFIG, clock=self.loop.time)
        self.run(hub.start())
        self.transports[at:], self.hubs[at:] = [transport, *self.transports[at + 1 :]], [hub, *self.hubs[at + 1 :]]

    # -- producers

    @rule(at=replicas, kind=st.sampled_from(KINDS), size=st.sampled_from([1, 1, 1, 3, 40]), key=st.sampled_from("  k"))
    def publish(self, at: int, kind: str, size: int, key: str) -> None:
        """A producer publishes at this replica, perhaps under a key that was used before."""
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
        """Subscriptions are alive but deaf, or hear again."""
        self.redis.deaf = deaf

    @rule()
    def hold_announcements(self) -> None:
        """Announcements are on their way for long."""
        self.redis.release()
        self.redis.hold()

    @rule()
    def release_announcements(self) -> None:
        """They arrive."""
        self.redis.release()

    @precondition(lambda self: self.redis.announced)
    @rule(back=st.integers(1, 5), twice=st.booleans())
    def announce_again(self, back: int, twice: bool) -> None:
        """An old announcement comes once more."""
        for _ in range(1 + twice):
            self.redis.announce(self.redis.announced[-min(back, len(self.redis.announced))])

    @rule(
        payload=st.sampled_from(
            [b"nonsense", b"{}", b'{"epoch":"x","events":[{"sequence":9,"id":"f","type":"event","data":{}}]}']
        )
    )
    def announce_foreign(self, payload: bytes) -> None:
        """Somebody else uses the channel."""
        FakeRedis.announce(self.redis, payload)

    @rule(after=st.booleans(), count=st.integers(1, 3))
    def fail(self, after: bool, count: int) -> None:
        """The next calls fail, or lose their answers."""
        self.redis.fail(count, after=after)

    @rule(at=replicas, size=st.integers(1, 3))
    def lose_an_answer(self, at: int, size: int) -> None:
        """A publish takes effect, and nobody hears of it."""
        self.redis.fail(after=True)
        self.publish(at, "event", size, "")

    @rule(down=st.booleans())
    def go_down(self, down: bool) -> None:
        """Redis cannot be reached, or can again."""
        self.redis.down = down

    @rule()
    def hang_up(self) -> None:
        """Every subscription ends."""
        self.redis.hang_up()

    @rule(at=replicas, name=st.sampled_from(CALLS), answers=st.booleans())
    def hold_calls(self, at: int, name: str, answers: bool) -> None:
        """A replica's calls of a kind, or their answers, are on their way for long."""
        transport = self.transports[at]
        (transport.after if answers else transport.before)[name].clear()

    @rule(at=replicas)
    def release_calls(self, at: int) -> None:
        """They arrive."""
        for gate in self._gates(at):
            gate.set()

    def _gates(self, at: int) -> Iterator[asyncio.Event]:
        transport = self.transports[at]
        yield from (*transport.before.values(), *transport.after.values())

    @rule(size=st.integers(0, 8))
    def trim(self, size: int) -> None:
        """The history loses its older part."""
        self.redis.trim(size)

    @rule(at=replicas, size=st.sampled_from([1, 3, 40]), kept=st.integers(0, 2))
    def lose_for_good(self, at: int, size: int, kept: int) -> None:
        """What nobody was told of leaves the history before anybody could ask."""
        deaf, self.redis.deaf = self.redis.deaf, True
        self.publish(at, "event", size, "")
        self.redis.trim(kept)
        self.redis.deaf = deaf

    @rule()
    def flush(self) -> None:
        """Redis loses everything."""
        self.redis.flush()

    @rule(back=st.integers(1, 6))
    def fail_over(self, back: int) -> None:
        """A copy that lags takes over."""
        # What no replica has delivered may be numbered again, that is not promised otherwise.
        self.settle()
        self.redis.rewind(max(0, self.redis.place.sequence - back))
        self.history.fork(*self.redis.place)

    # -- clients

    @rule(who=clients, at=replicas, room=st.sampled_from([None, None, 0, 800]), strikes=st.booleans())
    def connect(self, who: int, at: int, room: int | None, strikes: bool) -> None:
        """A client comes, or comes back, and may be told its place at once; its socket may hold little."""

        def come() -> None:
            self.parties[who].connect(self.hubs[at], room)
            if strikes and self._heard(who):
                self.parties[who].heartbeat()

        self.run(_call(self.parties[who].leave))
        self.run(_call(come))

    @rule(who=clients, at=replicas, kind=st.sampled_from(KINDS), size=st.sampled_from([1, 3, 40]))
    def miss_something(self, who: int, at: int, kind: str, size: int) -> None:
        """A client is away while events are published, and is told its place as soon as it is back."""
        self.run(_call(self.parties[who].leave))
        self.publish(at, kind, size, "")
        self.connect(who, at, None, True)

    @rule(who=clients)
    def vanish(self, who: int) -> None:
        """A client goes."""
        self.run(_call(self.parties[who].leave))

    @rule(who=clients, room=st.sampled_from([0, 800]))
    def slow_down(self, who: int, room: int) -> None:
        """A client reads no more."""
        if self.parties[who].open:
            self.parties[who].sink.room = room

    @rule(who=clients)
    def read(self, who: int) -> None:
        """A client reads what there is."""
        if self.parties[who].open:
            self.run(_call(self.parties[who].sink.drain))

    @rule(who=clients)
    def heartbeat(self, who: int) -> None:
        """A client is told its place."""
        if self._heard(who):
            self.run(_call(self.parties[who].heartbeat))

    @rule(who=clients)
    def resync(self, who: int) -> None:
        """A client asks for what it missed."""
        if self._heard(who):
            self.run(_call(self.parties[who].resync))

    @rule(who=clients, patterns=st.sampled_from(FILTERS[1:]))
    def subscribe(self, who: int, patterns: list[str]) -> None:
        """A client wants something else from now on."""
        if self._heard(who):
            self.run(_call(self.parties[who].subscribe, patterns))

    def _heard(self, who: int) -> bool:
        """Whether what this client says is read: not while its socket is full."""
        return self.parties[who].open and not self.parties[who].sink.blocked

    # -- replicas and time

    @precondition(lambda self: not self.redis.down)
    @rule(at=replicas)
    def restart(self, at: int) -> None:
        """A replica ends, and another takes its place."""
        self.release_calls(at)
        for party in self.parties:
            if party.hub is self.hubs[at]:
                self.run(_call(party.leave))
        self.run(self.hubs[at].stop())
        self.redis.forget_faults()
        self._start(at)

    @rule(turns=st.integers(1, 30))
    def turn(self, turns: int) -> None:
        """The loop turns a few times."""
        self.run(_turns(turns))

    @rule(seconds=st.sampled_from([0.5, 6.0, 40.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.run(asyncio.sleep(seconds))

    @rule()
    def settle(self) -> None:
        """Let everything heal; then everybody must have everything, and the checker nothing to say."""
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
        """What clients are owed.

        A verdict that the epoch has changed replays only what the history still has of it. A client that is cut off
        before its verdict never hears that something was gone: that is the protocol's, verdicts come last.
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
        # twice: what is found by the first checks of the position is told by then
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
        """Settle, and leave nothing behind."""
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
    """Where everybody stands, for a failure."""
    hubs = [(hub.epoch, hub.sequence, hub.get_circuit_state().state, hub.is_listener_healthy()) for hub in model.hubs]
    parties = [(p.client and p.client.place, p.client and p.client.delivery, p.open) for p in model.parties]
    return f"Redis {model.redis.place}, replicas {hubs}, clients {parties}, {len(model.publishes)} publishes"


def _until(history: History, seen: ClientRecord, place: Place) -> History:
    """What was published until a client at this place changed its mind."""
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
    # shrinking takes many times longer than finding; by hand it is worth that
    phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)

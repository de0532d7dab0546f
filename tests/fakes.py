"""Stand-ins with a small life of their own, shared by the tests; no mocks."""

import asyncio
import json
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import copy_context
from itertools import islice
from typing import Any, TypeVar, cast

import msgspec
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from kernel import (
    BroadcastRetryMetrics,
    CameraStatusMessage,
    CircuitState,
    CircuitStatus,
    DetectionBatchMessage,
    DetectionNewMessage,
    EventMessage,
    InfrastructureAlertMessage,
    Message,
    PublishOptions,
    Receipt,
    ReplayedReceipt,
    SceneChangeMessage,
    ServiceStatusMessage,
    SummaryUpdateData,
    SummaryUpdateMessage,
    WorkerStatusMessage,
)
from kernel.clients import CloseReason
from kernel.errors import TransportError, TransportUnavailable, WriteRefused
from kernel.log import WINDOW_BITS, Joined
from kernel.log.envelope import Entry, decode_announcement, decode_entry
from kernel.log.transport import Batch, Outgoing, Page, Publication
from kernel.messages import MESSAGE_TYPES
from kernel.position import NOWHERE, Fence, Position
from kernel.redis.publish_queue import PendingPublish, PublishQueue
from kernel.resilience.tasks import end

_T = TypeVar("_T")


class FakeBroadcaster:
    """A broadcaster without Redis: numbers what it is given, remembers idempotency keys, and records every publish.

    `calls` holds the messages of each publish and `options` its options; `error` is raised instead, if set. The rest is
    what `/health` is to see.
    """

    def __init__(self) -> None:
        self.calls: list[list[Message]] = []
        self.options: list[PublishOptions | None] = []
        self.error: Exception | None = None
        self.subscribers = 2
        self.epoch = "9f86d081884c7d65"
        self.sequence = 0
        self.connections = 0
        self.ready = True
        self.draining = False
        self.event_max_bytes = 65536
        self.circuit = CircuitStatus()
        self.listener_healthy = True
        self.metrics = BroadcastRetryMetrics()
        self._seen: dict[str, list[Receipt]] = {}

    async def broadcast_event(self, data: Any, *, options: PublishOptions) -> Receipt:
        """Publish it."""
        return await self._publish(EventMessage(data=data), options)

    async def broadcast_service_status(self, data: Any, *, timestamp: str, options: PublishOptions) -> Receipt:
        """Publish it."""
        return await self._publish(ServiceStatusMessage(data=data, timestamp=timestamp), options)

    async def broadcast_scene_change(self, data: Any, *, options: PublishOptions) -> Receipt:
        """Publish it."""
        return await self._publish(SceneChangeMessage(data=data), options)

    async def broadcast_camera_status(self, data: Any, *, options: PublishOptions) -> Receipt:
        """Publish it."""
        return await self._publish(CameraStatusMessage(data=data), options)

    async def broadcast_alert(self, data: Any, event_type: str, *, options: PublishOptions) -> Receipt:
        """Publish it."""
        return await self._publish(MESSAGE_TYPES[event_type](data=data), options)

    async def broadcast_worker_status(self, data: Any, *, timestamp: str | None, options: PublishOptions) -> Receipt:
        """Publish it."""
        return await self._publish(WorkerStatusMessage(data=data, timestamp=timestamp), options)

    async def broadcast_detection_new(self, data: Any, *, options: PublishOptions) -> Receipt:
        """Publish it."""
        return await self._publish(DetectionNewMessage(data=data), options)

    async def broadcast_detection_batch(self, data: Any, *, options: PublishOptions) -> Receipt:
        """Publish it."""
        return await self._publish(DetectionBatchMessage(data=data), options)

    async def broadcast_infrastructure_alert(self, data: Any, *, options: PublishOptions) -> Receipt:
        """Publish it."""
        return await self._publish(InfrastructureAlertMessage(data=data), options)

    async def broadcast_summary_update(self, hourly: Any, daily: Any, *, options: PublishOptions) -> Receipt:
        """Publish it."""
        message = SummaryUpdateMessage(data=SummaryUpdateData(hourly=hourly, daily=daily))
        return await self._publish(message, options)

    async def _publish(self, message: Message, options: PublishOptions) -> Receipt:
        return (await self.broadcast_batch([message], options=options))[0]

    async def broadcast_batch(self, messages: Sequence[Message], *, options: PublishOptions) -> list[Receipt]:
        """Number them."""
        assert options.validated, "what the decoder made must not be validated again"
        self.calls.append(list(messages))
        self.options.append(options)
        if self.error is not None:
            raise self.error
        return self._number(len(messages), options)

    def _number(self, count: int, options: PublishOptions | None) -> list[Receipt]:
        key = options.idempotency_key if options is not None else None
        if key is not None and key in self._seen:
            return [ReplayedReceipt(r.sequence, r.epoch, r.subscribers) for r in self._seen[key]]
        receipts = [Receipt(self.sequence + number, self.epoch, self.subscribers) for number in range(1, count + 1)]
        self.sequence += count
        if key is not None:
            self._seen[key] = receipts
        return receipts

    def get_circuit_state(self) -> CircuitStatus:
        """The circuit as the test set it."""
        return self.circuit

    def is_listener_healthy(self) -> bool:
        """The listener as the test set it."""
        return self.listener_healthy

    def is_degraded(self) -> bool:
        """Return True if the circuit is not closed, like the real broadcaster."""
        return self.circuit.state is not CircuitState.CLOSED

    def get_broadcast_metrics(self) -> BroadcastRetryMetrics:
        """The metrics as the test set them."""
        return self.metrics


def entry(sequence: int = 42, data: str = '{"a":1}', **fields: Any) -> Entry:
    """An event as it comes out of Redis; `data` is its JSON."""
    head = json.dumps({"sequence": sequence, "id": f"id-{sequence}", "type": "event", **fields})
    return msgspec.json.decode(f'{head[:-1]},"data":{data}}}', type=Entry)


def wire_frames(data: bytes) -> list[Frame]:
    """Ready frames as a client of the `websockets` library reads them, inflated where permessage-deflate was used."""
    reader = StreamReader()
    reader.feed_data(data)
    inflate = PerMessageDeflate(
        remote_no_context_takeover=True,
        local_no_context_takeover=True,
        remote_max_window_bits=WINDOW_BITS,
        local_max_window_bits=15,
    )
    frames = []
    while reader.buffer:
        parser = Frame.parse(reader.read_exact, mask=False, extensions=[inflate])
        try:
            next(parser)
        except StopIteration as done:
            frames.append(done.value)
        else:
            raise AssertionError("a frame is longer than its bytes")
    return frames


def text_of(message: Frame | str | bytes) -> str:
    """The JSON in a frame or an ASGI message, inflated where it is binary."""
    payload = bytes(message.data) if isinstance(message, Frame) else message
    if isinstance(payload, str) or (isinstance(message, Frame) and message.opcode is Opcode.TEXT):
        return payload if isinstance(payload, str) else payload.decode()
    assert payload[0] == 0
    return zlib.decompress(payload[1:]).decode()


class FakeSink:
    """The sending side of a socket, in memory; it checks each heartbeat that is written to it.

    `messages` are the JSON messages in their order. With `room`, it is blocked while more than `room` bytes are unsent;
    `drain()` takes them. At each heartbeat every event up to its `lastSeq` must have been written, from the client's
    start (`since`, or the first frame), except those for which `skips` returns True because of the client's patterns.
    With `lossy` this holds only after the first `resync_ack`, which says what was lost. `claims` is the position that a
    resync named. With `stream`, the writes are parts of an event stream, and `blocks` are its blocks.
    """

    def __init__(
        self,
        room: int | None = None,
        *,
        since: int | None = None,
        skips: Callable[[int], bool] = lambda _: False,
        lossy: bool = False,
        stream: bool = False,
    ) -> None:
        self.stream = stream
        self.blocks: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self.writes = 0
        self.unsent = 0
        self.room = room
        self.skips = skips
        self.lossy = lossy
        self.claims = 0
        self.closed: CloseReason | None = None
        self.on_blocked: Callable[[], object] = lambda: None
        self._since = since
        self._epoch = ""
        self._passed: set[int] = set()
        self._begun = 0
        self._complete = 0
        self._replayed: list[int] = []
        self._free = asyncio.Event()
        self._free.set()
        self._written = asyncio.Event()

    # -- what the kernel sees

    @property
    def blocked(self) -> bool:
        """True while more is unsent than `room` allows."""
        return not self._free.is_set()

    def write(self, data: Joined) -> None:
        """Take messages, unless closed."""
        if self.closed is not None:
            return
        if self.stream:
            assert isinstance(data, bytes)
            blocks = data.decode().removesuffix("\n\n").split("\n\n")
            self.blocks += blocks
            texts = [
                line.removeprefix("data: ") for block in blocks for line in block.split("\n") if line[:5] == "data:"
            ]
        else:
            texts = [text_of(cast(Any, part)) for part in (wire_frames(data) if isinstance(data, bytes) else data)]
            assert texts, "an empty write"
        self.writes += 1
        for text in texts:
            message = json.loads(text)
            self.messages.append(message)
            self._check(message)
            self.unsent += len(text)
        self._written.set()
        if self.room is not None and self.unsent > self.room and not self.blocked:
            self._free.clear()
            self.on_blocked()

    async def drained(self) -> None:
        """Return when there is room, or when closed."""
        await self._free.wait()

    def close(self, reason: CloseReason) -> None:
        """Remember why."""
        self.closed = self.closed or reason
        self._free.set()
        self._written.set()

    # -- what the test does and sees

    def check_place(self, epoch: str, sequence: int) -> None:
        """Hold a heartbeat, or what would be in one now, against what was written."""
        if epoch != self._epoch or self.lossy or self.closed is not None:
            return
        if self._begun < 0:
            self._begun = min(self._passed, default=sequence + 1) - 1
        first = max(self._begun, self.claims, self._complete) + 1
        missing = set(range(first, sequence + 1)) - self._passed
        assert all(map(self.skips, missing)), f"{sequence} is ahead of what was written, {sorted(missing)} are missing"
        # what was once complete stays so, and is not looked at again
        self._complete = max(self._complete, sequence)

    def drain(self) -> None:
        """Let the peer read everything."""
        self.unsent = 0
        self._free.set()

    async def until(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        """Wait until the condition holds, looking again after each write and each close."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._written.clear()
                    await self._written.wait()
        except TimeoutError:
            raise AssertionError(f"not within {seconds} s; the last messages are {self.messages[-5:]}") from None

    def of(self, *types: str) -> list[dict[str, Any]]:
        """The messages of these types (or actions)."""
        return [m for m in self.messages if m.get("type", m.get("action")) in types]

    @property
    def numbers(self) -> list[int]:
        """The sequence numbers of the events, in the order in which they came."""
        return [m["sequence"] for m in self.messages if "sequence" in m]

    @property
    def outline(self) -> list[str]:
        """The messages in short: `7` is a live event, `r7` a replayed one, else the type and what tells it apart."""
        return [_outline(message) for message in self.messages]

    def _check(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if "sequence" in message:
            self._passed.add(message["sequence"])
            if message.get("replay"):
                self._replayed.append(message["sequence"])
        elif kind == "connected":
            self._epoch = message["epoch"]
            self._begun = message["lastSeq"] if self._since is None else self._since
        elif kind == "gap":
            self._passed.update(range(message["from"], message["to"] + 1))
        elif kind == "epoch_changed":
            # a client that connected before Redis was reached starts anywhere in the first epoch
            self._begun = 0 if self._epoch else -1
            self._epoch = message["epoch"]
            self._passed.clear()
            self.claims = self._complete = 0
        elif kind == "resync_ack":
            if message["epoch"] != self._epoch or message.get("epoch_changed"):
                self._epoch = message["epoch"]
                self._passed = set(self._replayed)
                self._begun = min(self._replayed, default=1) - 1
                self._complete = 0
            if "oldest_available" in message:
                self._passed.update(range(message["last_sequence"] + 1, message["oldest_available"]))
            if message["recovered"]:
                self.claims = max(self.claims, message["last_sequence"])
            self._replayed.clear()
            self.lossy = False
        elif kind == "ping":
            self.check_place(message["epoch"], message["lastSeq"])


def _outline(message: dict[str, Any]) -> str:
    if "sequence" in message:
        return f"{'r' if message.get('replay') else ''}{message['sequence']}"
    kind = message.get("type", message.get("action"))
    match kind:
        case "gap":
            return f"gap {message['from']}-{message['to']}"
        case "epoch_changed":
            return f"epoch {message['epoch']}"
        case "service_status":
            return str(message["data"]["status"])
        case "error":
            return f"error {message['error']}"
        case _:
            return str(kind)


class FakeRedis:
    """A Redis in memory: numbering, history, records of publishes, subscribers.

    The same tests run against its transport and the real one (tests/kernel/log/test_transport.py).
    Rare faults: `fail` the next calls, be `down` or `read_only`; announcements `deaf` (lost) or `hold` and `release`;
    `first_edition` (announcements do not name the event before); `lose_history`, `trim`, `rewind` (a copy that lags
    takes over), `flush`, `hang_up` (subscriptions end). An answer holds `page_bytes` of the history, or one event.
    """

    def __init__(self, *, history_size: int = 10_000, page_bytes: int = 1024 * 1024) -> None:
        self.history_size = history_size
        self.page_bytes = page_bytes
        self.place = NOWHERE
        self.history: dict[int, tuple[str, bytes]] = {}
        self.records: dict[str, tuple[str, Publication]] = {}
        self.ears: list[asyncio.Queue[bytes | None]] = []
        self.calls: list[str] = []
        self.read_only = False
        self.deaf = False
        self.first_edition = False
        self._down = False
        self._held: list[bytes] | None = None
        self._faults: deque[tuple[TransportError, bool]] = deque()
        self._epochs = 0

    def fail(self, count: int = 1, error: TransportError | None = None, *, after: bool = False) -> None:
        """Let the next `count` calls fail, or, with `after`, take effect and lose their answers."""
        error = error or TransportUnavailable("fake: no connection")
        self._faults += [(type(error)(*error.args), after) for _ in range(count)]

    def forget_faults(self) -> None:
        """Let the next calls succeed, whatever `fail` was told."""
        self._faults.clear()

    @property
    def down(self) -> bool:
        """True while it is unreachable; setting it to True ends the subscriptions too."""
        return self._down

    @down.setter
    def down(self, down: bool) -> None:
        self._down = down
        if down:
            self.hang_up()

    def hold(self) -> None:
        """Keep announcements back until `release`."""
        self._held = []

    def release(self) -> None:
        """Send what was held back."""
        held, self._held = self._held or [], None
        for payload in held:
            self.announce(payload)

    def hang_up(self) -> None:
        """End every subscription."""
        for ear in self.ears:
            ear.put_nowait(None)

    def flush(self) -> None:
        """Lose everything."""
        self.place = NOWHERE
        self.history.clear()
        self.records.clear()

    def lose_history(self) -> None:
        """Lose the events, but not the numbering."""
        self.history.clear()

    def trim(self, size: int) -> None:
        """Keep only the newest `size` events."""
        for sequence in list(islice(self.history, max(0, len(self.history) - size))):
            del self.history[sequence]

    def rewind(self, sequence: int) -> None:
        """Go back to `sequence`, like a copy that lags and takes over."""
        self.place = self.place._replace(sequence=sequence)
        self.history = {number: event for number, event in self.history.items() if number <= sequence}
        self.records = {name: kept for name, kept in self.records.items() if kept[1].first <= sequence}

    def announce(self, payload: bytes) -> int:
        """Publish any payload on the channel; returns the number of subscribers that it reaches."""
        if self._held is not None:
            self._held.append(payload)
        elif not self.deaf:
            for ear in self.ears:
                ear.put_nowait(payload)
        return len(self.ears)

    def called(self, name: str) -> TransportError | None:
        """Note a call: raises the fault that is due, or returns the one to raise afterwards."""
        self.calls.append(name)
        if self._down:
            raise TransportUnavailable("fake: down")
        error, after = self._faults.popleft() if self._faults else (None, True)
        if error is not None and not after:
            raise error
        return error

    def run(self, fence: Fence, outgoing: Outgoing | None) -> Publication:
        """Do what the script does: fence, records, numbers, history, announcement."""
        name = None if outgoing is None else outgoing.key or outgoing.id
        began = not self.place.epoch or self._forked(fence)
        if outgoing is not None and name in self.records and not began:
            by, first = self.records[name]
            if first.epoch == self.place.epoch and first.first + first.size - 1 <= self.place.sequence:
                return first._replace(replayed=by != outgoing.id)
        if self.read_only and (began or outgoing is not None):
            raise WriteRefused("fake: READONLY")
        if began:
            self._epochs += 1
            self.place = Position(f"epoch-{self._epochs}", 0)
            self.history.clear()
        epoch, before = self.place
        after = self.id_of(before)
        entries = []
        for sequence, (id, tail) in enumerate(() if outgoing is None else outgoing.events, before + 1):
            self.place = Position(epoch, sequence)
            self.history[sequence] = (id, tail)
            entries.append(b'{"sequence":%d%s' % (sequence, tail))
        self.trim(self.history_size)
        reached = 0
        if entries or began:
            known = (after or not before) and not self.first_edition
            chain = b',"after":"%s"' % after.encode() if known else b""
            events = b",".join(entries)
            reached = self.announce(b'{"epoch":"%s"%s,"events":[%s]}' % (epoch.encode(), chain, events))
        publication = Publication(epoch, before + 1, len(entries), reached, False)
        if outgoing is not None and name is not None:
            self.records[name] = (outgoing.id, publication)
        return publication

    def _forked(self, fence: Fence) -> bool:
        (epoch, delivered), id, verified, left, doubts = fence
        if self.place.epoch in left:
            return True
        if epoch != self.place.epoch:
            return False
        if self.place.sequence < delivered:
            return True
        for number, known in {(delivered, id), verified}:
            here = self.id_of(number)
            if known and here != known and (here or doubts):
                return True
        return False

    def id_of(self, sequence: int) -> str:
        """The id of the event with this number, "" if it is not kept."""
        return self.history.get(sequence, ("",))[0]


class FakeTransport:
    """One replica's link to a `FakeRedis`."""

    def __init__(self, redis: FakeRedis, deadline: float = 5.0) -> None:
        self.redis = redis
        self.kept = 0
        self._ears: list[asyncio.Queue[bytes | None]] = []
        self._calls: set[asyncio.Task[Any]] = set()
        self._queue = PublishQueue(self._send, deadline, clock=lambda: asyncio.get_running_loop().time())

    @property
    def subscriptions(self) -> int:
        """The number of this replica's subscriptions."""
        return len(self._ears)

    async def close(self) -> None:
        """End this replica's subscriptions, and fail its publishes."""
        await self._queue.close()
        await end(self._calls)
        for ear in self._ears:
            ear.put_nowait(None)

    async def publish(self, outgoing: Outgoing, fence: Fence) -> Publication:
        """As the real one does, by the same queue."""
        events = outgoing.events
        size = sum(len(tail) for _, tail in events)
        # the publish itself is where the real one has the arguments of the script
        arguments: Any = outgoing
        publication: Publication = await self._queue.put(
            outgoing.id, arguments, fence, events=len(events), size=size, context=copy_context()
        )
        return publication

    async def _send(self, group: Sequence[PendingPublish], seconds: float) -> Sequence[Publication]:
        fence = group[-1].fence
        requests: list[Any] = [publish.arguments for publish in group]
        call = self.call("publish", lambda: [self.redis.run(fence, outgoing) for outgoing in requests])
        # a call that is given up may still take effect, as with a real server
        calling = asyncio.create_task(call)
        self._calls.add(calling)
        calling.add_done_callback(self._called)
        done, _ = await asyncio.wait([calling], timeout=seconds)
        if not done:
            raise TransportUnavailable("fake: no answer in time")
        return calling.result()

    def _called(self, call: "asyncio.Task[Any]") -> None:
        self._calls.discard(call)
        # nobody may be waiting for it any more
        _ = call.cancelled() or call.exception()

    def circuit_changed(self, state: CircuitState) -> None:
        """As the real one does."""
        self._queue.circuit_changed(state)

    def end_publishes(self) -> None:
        """As the real one does."""
        self._queue.give_up("publishing has ended")

    async def position(self, fence: Fence, *, probe: bool = False) -> Position:
        """As the real one does."""

        def check() -> Position:
            self.redis.run(fence, None)
            if probe and self.redis.read_only:
                raise WriteRefused("fake: READONLY")
            self.kept = len(self.redis.history)
            return self.redis.place

        return await self.call("probe" if probe else "position", check)

    async def read(self, first: int, last: int, witness: int = 0) -> Page:
        """As the real one does."""

        def page() -> Page:
            place, history = self.redis.place, self.redis.history
            kept = sorted(number for number in history if number >= first)
            wanted: list[int] = []
            size = 0
            for number in kept:
                size += len(history[number][1])
                if number > last or (wanted and size > self.redis.page_bytes):
                    break
                wanted.append(number)
            entries = (decode_entry(number, {b"event": history[number][1]}) for number in wanted)
            oldest = min(history, default=place.sequence + 1)
            beyond = min((number for number in kept if number not in wanted), default=place.sequence + 1)
            known = history.get(witness, ("",))[0]
            return Page(place, oldest, [entry for entry in entries if entry is not None], beyond, known)

        return await self.call("read", page)

    async def listen(self, idle: float) -> AsyncGenerator[Batch, None]:
        """As the real one does."""
        self.redis.called("listen")
        ear: asyncio.Queue[bytes | None] = asyncio.Queue()
        for ears in (self._ears, self.redis.ears):
            ears.append(ear)
        try:
            yield Batch([], 0)
            while True:
                payloads = await _arrived(ear, idle)
                announcements = [decode_announcement(payload) for payload in payloads]
                ours = [announcement for announcement in announcements if announcement is not None]
                yield Batch(ours, len(payloads) - len(ours))
        finally:
            for ears in (self._ears, self.redis.ears):
                ears.remove(ear)

    async def call(self, name: str, act: Callable[[], _T]) -> _T:
        """Make a call named `name` to the fake Redis; a subclass may hold it up."""
        await asyncio.sleep(0)
        error = self.redis.called(name)
        answer = act()
        if error is not None:
            raise error
        return answer


# Told apart from every payload by its identity.
_NOTHING = bytes(bytearray(b"nothing"))


async def _arrived(ear: "asyncio.Queue[bytes | None]", idle: float) -> list[bytes]:
    """Return everything that has arrived, after `idle` seconds at most; raises when the subscription has ended."""
    payloads: list[bytes] = []
    # not `asyncio.timeout`: what that throws through its readers ends Python 3.11's tracing (and coverage) of them
    timer = asyncio.get_running_loop().call_later(idle, ear.put_nowait, _NOTHING)
    try:
        waiting = [await ear.get()]
    finally:
        timer.cancel()
    while not ear.empty():
        waiting.append(ear.get_nowait())
    for payload in waiting:
        if payload is None:
            raise TransportUnavailable("fake: subscription lost")
        if payload is not _NOTHING:
            payloads.append(payload)
    return payloads

"""Stand-ins with a small life of their own, shared by the tests; no mocks."""

import asyncio
import inspect
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame
from websockets.streams import StreamReader

from kernel import (
    WINDOW_BITS,
    BroadcastRetryMetrics,
    CircuitState,
    CircuitStatus,
    CloseReason,
    EventBroadcaster,
    Joined,
    PublishOptions,
    Receipt,
    ReplayedReceipt,
)


class FakeBroadcaster:
    """A broadcaster without Redis: numbers what it is given, remembers idempotency keys, and records every publish.

    It takes exactly the `broadcast_*` calls that the real one takes. `calls` holds (method, arguments by name) and
    `options` those of each call; `error` is raised instead, if set. The rest is what `/health` is to see.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.options: list[PublishOptions | None] = []
        self.error: Exception | None = None
        self.subscribers = 2
        self.epoch = "9f86d081884c7d65"
        self.sequence = 0
        self.connections = 0
        self.ready = True
        self.draining = False
        self.circuit = CircuitStatus()
        self.listener_healthy = True
        self.metrics = BroadcastRetryMetrics()
        self._seen: dict[str, list[Receipt]] = {}

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Receipt | list[Receipt]]]:
        if not name.startswith("broadcast_"):
            raise AttributeError(name)
        signature = inspect.signature(getattr(EventBroadcaster, name))

        async def publish(*args: Any, options: PublishOptions | None = None, **named: Any) -> Receipt | list[Receipt]:
            arguments = signature.bind(self, *args, options=options, **named).arguments
            given = {key: value for key, value in arguments.items() if key not in ("self", "options")}
            self.calls.append((name, given))
            self.options.append(options)
            if self.error is not None:
                raise self.error
            receipts = self._number(len(given["messages"]) if name == "broadcast_batch" else 1, options)
            return receipts if name == "broadcast_batch" else receipts[0]

        return publish

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
        """Whether the circuit is not closed, as with the real one."""
        return self.circuit.state is not CircuitState.CLOSED

    def get_broadcast_metrics(self) -> BroadcastRetryMetrics:
        """The metrics as the test set them."""
        return self.metrics


def read_wire(data: bytes) -> list[str]:
    """The JSON of ready frames as a client gets it: RFC 6455, inflated where they are compressed in either way."""
    reader = StreamReader()
    reader.feed_data(data)
    inflate = PerMessageDeflate(
        remote_no_context_takeover=True,
        local_no_context_takeover=True,
        remote_max_window_bits=WINDOW_BITS,
        local_max_window_bits=15,
    )
    texts = []
    while reader.buffer:
        parser = Frame.parse(reader.read_exact, mask=False, extensions=[inflate])
        try:
            next(parser)
        except StopIteration as done:
            texts.append(_json_of(bytes(done.value.data)))
        else:
            raise AssertionError("a frame is longer than its bytes")
    return texts


def _json_of(payload: bytes) -> str:
    return (zlib.decompress(payload[1:]) if payload.startswith(b"\x00") else payload).decode()


class FakeSink:
    """The sending side of a socket, in memory, with a client at the other end that holds the service to its word.

    `messages` are the JSON messages in their order. With `room`, it is blocked as soon as more than so many bytes are
    unsent, until `drain()`. Each heartbeat is held against what came before it: every event up to it, from where the
    client began (`since`, or the first frame), must have been written, but for those that `skips` says are filtered.
    """

    def __init__(
        self, room: int | None = None, *, since: int | None = None, skips: Callable[[int], bool] = lambda _: False
    ) -> None:
        self.messages: list[dict[str, Any]] = []
        self.writes = 0
        self.unsent = 0
        self.room = room
        self.skips = skips
        self.closed: CloseReason | None = None
        self.on_blocked: Callable[[], object] = lambda: None
        self._since = since
        self._epoch = ""
        self._passed: set[int] = set()
        self._begun = 0
        self._replayed: list[int] = []
        self._free = asyncio.Event()
        self._free.set()
        self._written = asyncio.Event()

    # -- what the kernel sees

    @property
    def blocked(self) -> bool:
        """Whether more is unsent than there is room for."""
        return not self._free.is_set()

    def write(self, data: Joined) -> None:
        """Take messages, unless closed."""
        if self.closed is not None:
            return
        texts = read_wire(data) if isinstance(data, bytes) else [m if isinstance(m, str) else _json_of(m) for m in data]
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
        """The messages in short: `7` for a live event, `r7` for a replayed one, else the type and what tells it apart."""
        return [_outline(message) for message in self.messages]

    def _check(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if "sequence" in message:
            self._passed.add(message["sequence"])
            if message.get("replay"):
                self._replayed.append(message["sequence"])
        elif kind == "connected":
            self._epoch = message["epoch"]
            self._begun = message["lastSeq"] if self._since is None else min(self._since, message["lastSeq"])
        elif kind == "gap":
            self._passed.update(range(message["from"], message["to"] + 1))
        elif kind == "epoch_changed":
            # the first epoch of one who came before Redis was reached begins anywhere
            self._begun = 0 if self._epoch else -1
            self._epoch = message["epoch"]
            self._passed.clear()
        elif kind == "resync_ack":
            if message["epoch"] != self._epoch or message.get("epoch_changed"):
                self._epoch = message["epoch"]
                self._passed = set(self._replayed)
                self._begun = min(self._replayed, default=1) - 1
            if "oldest_available" in message:
                self._passed.update(range(message["last_sequence"] + 1, message["oldest_available"]))
            self._replayed.clear()
        elif kind == "ping" and message["epoch"] == self._epoch:
            if self._begun < 0:
                self._begun = min(self._passed, default=message["lastSeq"] + 1) - 1
            missing = set(range(self._begun + 1, message["lastSeq"] + 1)) - self._passed
            assert all(map(self.skips, missing)), f"the heartbeat {message} is ahead of what was written: {missing}"


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

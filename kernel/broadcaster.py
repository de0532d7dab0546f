"""The broadcaster: owns the rooms of the kernel and wires them; holds no algorithm of its own."""

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Any, Self

import msgspec

from kernel.clients.client import Client, Resume, Sink
from kernel.clients.drain import drain
from kernel.clients.hub import Hub
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.counters import Counters
from kernel.errors import TransportError
from kernel.listening.listener import Listener
from kernel.log.frames import Encoding, Frame
from kernel.log.log import Log
from kernel.log.transport import Transport
from kernel.messages.control import ServiceNotice
from kernel.messages.decoding import MAX_BATCH
from kernel.messages.messages import utc_now
from kernel.observer import Drained, Guarded, Observer
from kernel.position import Position
from kernel.publishing.flow_control import Window
from kernel.publishing.publisher import Publisher
from kernel.resilience.circuit import CircuitBreaker, CircuitState, CircuitStatus
from kernel.resilience.link import Link
from kernel.resilience.retry import BroadcastRetryMetrics, backoff

__all__ = ["BroadcasterConfig", "EventBroadcaster", "get_broadcaster"]


class BroadcasterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the kernel; seconds and bytes.

    `chunk_bytes` is how much is joined into one write. `most_ahead` is how far this replica's publishes may be ahead of
    what it has delivered, in events; well below what the history keeps, or what it misses could not be fetched.
    """

    message_buffer_size: int = 100
    max_retries: int = 3
    base_delay: float = 1.0
    max_delay: float = 30.0
    circuit_failure_threshold: int = 5
    circuit_recovery_seconds: float = 30.0
    position_check_seconds: float = 5.0
    supervision_interval_seconds: float = 30.0
    chunk_bytes: int = 256 * 1024
    most_ahead: int = 3 * MAX_BATCH

    @property
    def retry_lifetime(self) -> float:
        """For how many seconds a publish may be tried again under its id: every delay, every deadline, and a margin."""
        # from the 1,024th on they no longer grow, and there may be any number of them
        growing = min(self.max_retries, 1024)
        delays = sum(backoff(attempt, self.base_delay, self.max_delay, 1.0) for attempt in range(growing))
        delays += (self.max_retries - growing) * backoff(growing, self.base_delay, self.max_delay, 1.0)
        return delays + (self.max_retries + 2) * self.position_check_seconds + 10.0


class EventBroadcaster(Publisher):
    """Publishes events to every replica and delivers those of every replica to its own clients.

    Use it as `async with EventBroadcaster(transport) as broadcaster`, or `start()` and `stop()`; both are safe to call
    twice. Every method is for the event loop that it was started on.
    """

    def __init__(
        self, transport: Transport, config: BroadcasterConfig | None = None, observer: Observer | None = None
    ) -> None:
        config = config or BroadcasterConfig()
        self.counters = observer = Counters(Observer() if observer is None else Guarded(observer))
        link = Link(
            CircuitBreaker(config.circuit_failure_threshold, config.circuit_recovery_seconds),
            observer=observer,
            clock=time.time,
            moved=self._circuit_moved,
        )
        delays = (config.base_delay, config.max_delay)
        self._log = Log(transport, config.message_buffer_size)
        super().__init__(
            transport,
            link,
            fence=lambda: self._log.ring.fence,
            window=Window(config.most_ahead, here=lambda: self._log.place, stalled=lambda: self._listener.wake()),
            observer=observer,
            max_retries=config.max_retries,
            delays=delays,
        )
        self._listener = Listener(
            transport,
            self._log,
            link,
            deliver=self._deliver,
            observer=observer,
            check_seconds=config.position_check_seconds,
            supervision_seconds=config.supervision_interval_seconds,
            delays=delays,
        )
        self.hub = Hub(
            self._log,
            checked=self._listener.checked,
            degraded=self.is_degraded,
            observer=observer,
            chunk=config.chunk_bytes,
        )
        self._subscribe_seconds = config.position_check_seconds
        self._changing = asyncio.Lock()
        self.draining = False

    async def start(self, *, without_redis: bool = False) -> None:
        """Reach Redis and listen.

        Raises `TransportError` if Redis cannot be reached; with `without_redis` it starts degraded instead, and
        recovers by itself.
        """
        async with self._changing:
            if not self._link.in_use:
                await self._start(without_redis)

    async def _start(self, without_redis: bool) -> None:
        try:
            await self._listener.reach()
        except TransportError as error:
            if not without_redis:
                await self._transport.close()
                raise
            self._link.tripped(error)
        else:
            self._link.connected()
        self._link.in_use = True
        self._listener.start()
        if not self.is_degraded():
            # from here on no publish is without this replica; should it take long, the listener says why
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._subscribe_seconds):
                    await self._listener.subscribed.wait()

    async def stop(self) -> None:
        """Let go of every client and of Redis."""
        async with self._changing:
            if self._link.in_use:
                self._link.in_use = False
                self._window.moved()
                await self._listener.stop()
                for client in self.hub:
                    self.hub.disconnect(client)
                await self._log.close()
                await self._transport.close()

    async def drain(self, seconds: float) -> None:
        """Take no more clients and let those that are here go, spread over `seconds`; publishing goes on."""
        self.draining = True
        begin, clients = time.time(), list(self.hub)
        await drain(clients, seconds)
        self.counters.drained(Drained(len(clients), begin, time.time()))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def connect(
        self, sink: Sink, encoding: Encoding, *, patterns: Patterns = EVERYTHING, resume: Resume | None = None
    ) -> Client:
        """Let a client join: its first message goes out now, then what it missed (`resume`), then what comes."""
        return self.hub.connect(sink, encoding, patterns=patterns, resume=resume)

    def disconnect(self, client: Client) -> None:
        """Let a client go; one that has gone already is no error."""
        self.hub.disconnect(client)

    def record_ack(self, client: Client, sequence: int) -> bool:
        """Count a client's ack of everything up to `sequence`; whether it raised its highest one."""
        return self.hub.acknowledge(client, sequence)

    def get_messages_since(self, last_sequence: int, mark_as_replay: bool = False) -> list[dict[str, Any]]:
        """The messages of this epoch after `last_sequence` that this replica has in memory, oldest first."""
        frames = [frame for frame in self._log.ring.of_epoch() if frame.place.sequence > last_sequence]
        return [frame.message(replay=mark_as_replay) for frame in frames]

    @property
    def connections(self) -> int:
        """How many clients are connected to this replica."""
        return len(self.hub)

    @property
    def epoch(self) -> str:
        """The epoch in which this replica stands, "" before Redis was ever reached."""
        return self._log.place.epoch

    @property
    def sequence(self) -> int:
        """The number of the last event that this replica delivered."""
        return self._log.place.sequence

    @property
    def unacknowledged(self) -> int:
        """How many events the clients that are connected have got, should have acknowledged, and have not."""
        return self.hub.unacknowledged

    @property
    def history_depth(self) -> int:
        """How many events were kept in Redis at the last position check."""
        return self._transport.kept

    @property
    def ahead(self) -> int:
        """By how many events this replica's publishes are ahead of what it has delivered; they wait at `most_ahead`."""
        return self._window.ahead

    @property
    def ready(self) -> bool:
        """Whether Redis was reached once."""
        return bool(self._log.place.epoch)

    def get_circuit_state(self) -> CircuitStatus:
        """The circuit of the link to Redis."""
        return self._link.status

    def is_listener_healthy(self) -> bool:
        """Whether events of other replicas arrive here, as far as the last position check can tell."""
        return self._link.in_use and self._listener.healthy

    def is_degraded(self) -> bool:
        """Whether Redis is away: the circuit is not closed."""
        return self._link.status.state is not CircuitState.CLOSED

    def get_broadcast_metrics(self) -> BroadcastRetryMetrics:
        """What became of the publishes of this replica."""
        return self.metrics

    async def _deliver(self, frames: list[Frame], start: Position | None) -> None:
        await self.hub.deliver(frames, start)
        self._window.moved()

    def _circuit_moved(self, state: CircuitState) -> None:
        notice = ServiceNotice.healthy if state is CircuitState.CLOSED else ServiceNotice.degraded
        self.hub.tell_all(notice(utc_now()))
        self._listener.wake()
        self._window.moved()


def get_broadcaster(state: Any) -> EventBroadcaster:  # noqa: ANN401  the application's state, whatever framework it is of
    """The dependency provider: the one instance of the application, however many ask at once."""
    broadcaster: EventBroadcaster = state.broadcaster
    return broadcaster

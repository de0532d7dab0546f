"""The broadcaster: wires the kernel's components together and holds no algorithm of its own."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from kernel.clients.client import Client, Sink
from kernel.clients.drain import drain
from kernel.clients.hub import Hub
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.clients.replay import Resume
from kernel.counters import Counters
from kernel.errors import FieldError, MessageInvalid, TransportError
from kernel.listening.deafness import DeafnessDetector
from kernel.listening.delivery import Delivery
from kernel.listening.position_check import PositionCheck
from kernel.listening.subscription import Subscription
from kernel.listening.supervisor import Supervisor
from kernel.log.check_requests import CheckRequests
from kernel.log.encodings import Encoding
from kernel.log.frames import NumberField
from kernel.log.log import Log
from kernel.log.transport import Transport
from kernel.messages.decoding import MAX_BATCH
from kernel.messages.messages import (
    MESSAGE_TYPES,
    AlertData,
    AlertDeletedData,
    CameraStatusData,
    CameraStatusMessage,
    DetectionBatchData,
    DetectionBatchMessage,
    DetectionNewData,
    DetectionNewMessage,
    EventData,
    EventMessage,
    InfrastructureAlertData,
    InfrastructureAlertMessage,
    Message,
    SceneChangeData,
    SceneChangeMessage,
    ServiceStatusData,
    ServiceStatusMessage,
    Summary,
    SummaryUpdateData,
    SummaryUpdateMessage,
    WorkerStatusData,
    WorkerStatusMessage,
    utc_now,
)
from kernel.observer import Drained, Observer, Observers
from kernel.publishing.flow_control import FlowControl
from kernel.publishing.publisher import Publisher, PublishOptions, Receipt
from kernel.resilience.circuit import CircuitBreaker, CircuitState, CircuitStatus
from kernel.resilience.elapsed import elapsed
from kernel.resilience.link import Link
from kernel.resilience.retry import BroadcastRetryMetrics, backoff

__all__ = ["BroadcasterConfig", "EventBroadcaster", "get_broadcaster"]

_ALERTS = [wire_type for wire_type in MESSAGE_TYPES if wire_type.startswith("alert_")]


class BroadcasterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the kernel, in seconds, bytes and events.

    `event_max_bytes` limits the data of one event, as compact JSON. `chunk_bytes` is how much is joined into one write.
    `most_ahead` is how many events this replica's publishes may be ahead of what it has delivered; it must be well
    below what the history keeps, or missed events could not be fetched. `flow_patience_seconds` is how long publishes
    wait at that bound without any delivery before a position check. `number_field` is the name of an event's number in
    frames.
    """

    message_buffer_size: int = 100
    max_retries: int = 3
    base_delay: float = 1.0
    max_delay: float = 30.0
    circuit_failure_threshold: int = 5
    circuit_recovery_seconds: float = 30.0
    position_check_seconds: float = 5.0
    supervision_interval_seconds: float = 30.0
    event_max_bytes: int = 64 * 1024
    chunk_bytes: int = 256 * 1024
    most_ahead: int = 3 * MAX_BATCH
    flow_patience_seconds: float = 1.0
    number_field: NumberField = "sequence"

    @property
    def idle_seconds(self) -> float:
        """Seconds for which a position check may find events that the subscription misses before it counts as deaf."""
        return min(1.0, self.position_check_seconds)

    @property
    def retry_lifetime(self) -> float:
        """For how many seconds a publish may be tried again under its id: every delay, every deadline, and a margin."""
        # from the 1,024th on they no longer grow, and there may be any number of them
        growing = min(self.max_retries, 1024)
        delays = sum(backoff(attempt, self.base_delay, self.max_delay, 1.0) for attempt in range(growing))
        delays += (self.max_retries - growing) * backoff(growing, self.base_delay, self.max_delay, 1.0)
        return delays + (self.max_retries + 2) * self.position_check_seconds + 10.0


class EventBroadcaster:
    """Publishes events to every replica and delivers those of every replica to its own clients.

    `clock` returns the time in seconds since 1970; it dates events and decides when an open circuit is tried again.
    `elapsed` measures how long ago a publish was sent, in seconds; it is never set, and also counts the time for which
    the machine sleeps.

    Use it as `async with EventBroadcaster(transport) as broadcaster`, or call `start()` and `stop()`; both are safe to
    call twice. Every method belongs to the event loop on which it was started.

    The `broadcast_*` methods validate the struct they are given (see `PublishOptions.validated`) and return the
    receipt. They raise MessageInvalid with every field at fault (EventTooLarge for the size), CircuitOpen while the
    link to Redis is down, BroadcastFailed when Redis confirmed nothing within the retries, and NotStarted.
    """

    def __init__(
        self,
        transport: Transport,
        config: BroadcasterConfig | None = None,
        observers: Iterable[Observer] = (),
        *,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = elapsed,
    ) -> None:
        config = config or BroadcasterConfig()
        delays = (config.base_delay, config.max_delay)
        self.counters = Counters(clock)
        self._clock = clock
        self._observer = observer = Observers([self.counters, *observers])
        self._transport = transport
        self._log = Log(transport, config.message_buffer_size, number_field=config.number_field)
        self.checks = CheckRequests()
        self._flow = FlowControl(config.most_ahead, self._log.ring, self.checks, patience=config.flow_patience_seconds)
        self.hub = Hub(
            self._log,
            checks=self.checks,
            observer=observer,
            chunk=config.chunk_bytes,
            number_field=config.number_field,
            clock=clock,
        )
        self._link = Link(
            CircuitBreaker(config.circuit_failure_threshold, config.circuit_recovery_seconds),
            observer=observer,
            clock=clock,
            watchers=(self.hub, self.checks, self._flow, transport),
        )
        self._publisher = Publisher(
            transport,
            self._link,
            self._log.ring,
            self._flow,
            observer=observer,
            max_retries=config.max_retries,
            delays=delays,
            event_max_bytes=config.event_max_bytes,
            clock=clock,
            deadline=config.position_check_seconds,
            retry_lifetime=config.retry_lifetime,
            elapsed=elapsed,
        )
        delivery = Delivery(self._log, self.hub, self._flow, observer=observer, chunk=config.chunk_bytes, clock=clock)
        deafness = DeafnessDetector(config.idle_seconds)
        self._position_check = PositionCheck(
            transport,
            self._log,
            self._link,
            delivery,
            deafness,
            checks=self.checks,
            observer=observer,
            check_seconds=config.position_check_seconds,
            delays=delays,
        )
        self._subscription = Subscription(
            transport,
            self._log,
            self._link,
            delivery,
            self._position_check,
            deafness,
            checks=self.checks,
            observer=observer,
            idle=config.idle_seconds,
            delays=delays,
        )
        self._supervisor = Supervisor(
            self._subscription,
            self._position_check,
            checks=self.checks,
            observer=observer,
            interval=config.supervision_interval_seconds,
            restart_delay=config.base_delay,
        )
        self.event_max_bytes = config.event_max_bytes
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
            await self._position_check.reach()
        except TransportError as error:
            if not without_redis:
                await self._transport.close()
                raise
            self._link.tripped(error)
        else:
            self._link.connected()
        self._link.in_use = True
        self._publisher.start()
        self._supervisor.start()
        if not self.is_degraded():
            # From here on this replica receives every publish. If it takes long, the subscription logs why.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._subscribe_seconds):
                    await self._subscription.subscribed.wait()

    async def stop(self) -> None:
        """Let go of every client and of Redis."""
        async with self._changing:
            if self._link.in_use:
                self._link.in_use = False
                self._publisher.end()
                await self._supervisor.stop()
                for client in self.hub:
                    self.hub.disconnect(client)
                await self._log.close()
                await self._transport.close()

    async def drain(self, seconds: float) -> None:
        """Refuse new clients and close the others, spread over `seconds`; publishing continues."""
        self.draining = True
        begin, clients = self._clock(), list(self.hub)
        await drain(clients, seconds)
        self._observer.drained(Drained(len(clients), begin, self._clock()))

    def end_publishes(self) -> None:
        """Let every publish that waits for room, for a retry or for Redis fail at once, and refuse new ones.

        BroadcastFailed is raised where something was sent, so that the event may be in Redis; NotStarted where nothing
        was. Call it at the end of a drain, when no publish may take longer; `start` after a `stop` permits them again.
        """
        self._publisher.end()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def broadcast_event(self, data: EventData, *, options: PublishOptions | None = None) -> Receipt:
        """Publish a security event."""
        return await self._publisher.publish(EventMessage(data=data), options)

    async def broadcast_service_status(
        self, data: ServiceStatusData, *, timestamp: str | None = None, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a service's status; `timestamp` is ISO 8601, None for the present."""
        message = ServiceStatusMessage(data=data, timestamp=utc_now() if timestamp is None else timestamp)
        return await self._publisher.publish(message, options)

    async def broadcast_scene_change(self, data: SceneChangeData, *, options: PublishOptions | None = None) -> Receipt:
        """Publish a scene change."""
        return await self._publisher.publish(SceneChangeMessage(data=data), options)

    async def broadcast_camera_status(
        self, data: CameraStatusData, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a camera's status."""
        return await self._publisher.publish(CameraStatusMessage(data=data), options)

    async def broadcast_alert(
        self, data: AlertData | AlertDeletedData, event_type: str, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a step in an alert's life; `event_type` is `alert_created` to `alert_deleted`, or without `alert_`.

        Raises MessageInvalid also for another type, and for data that is not of that type.
        """
        wire_type = event_type if event_type in _ALERTS else f"alert_{event_type}"
        if wire_type not in _ALERTS:
            raise MessageInvalid([FieldError("type", f"must be one of {', '.join(_ALERTS)}")])
        if isinstance(data, AlertDeletedData) != (wire_type == "alert_deleted"):
            raise MessageInvalid([FieldError("data", f"is not the data of {wire_type}")])
        message = MESSAGE_TYPES[wire_type](data=data)  # type: ignore[arg-type]  # checked in the lines above
        return await self._publisher.publish(message, options)

    async def broadcast_worker_status(
        self, data: WorkerStatusData, *, timestamp: str | None = None, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a worker's status; `timestamp` is ISO 8601 or None."""
        return await self._publisher.publish(WorkerStatusMessage(data=data, timestamp=timestamp), options)

    async def broadcast_detection_new(
        self, data: DetectionNewData, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a detection."""
        return await self._publisher.publish(DetectionNewMessage(data=data), options)

    async def broadcast_detection_batch(
        self, data: DetectionBatchData, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a closed batch of detections."""
        return await self._publisher.publish(DetectionBatchMessage(data=data), options)

    async def broadcast_infrastructure_alert(
        self, data: InfrastructureAlertData, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish an alert about the infrastructure."""
        return await self._publisher.publish(InfrastructureAlertMessage(data=data), options)

    async def broadcast_summary_update(
        self, hourly: Summary | None, daily: Summary | None, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish new summaries; None for one that did not change."""
        message = SummaryUpdateMessage(data=SummaryUpdateData(hourly=hourly, daily=daily))
        return await self._publisher.publish(message, options)

    async def broadcast_batch(
        self, messages: Sequence[Message], *, options: PublishOptions | None = None
    ) -> list[Receipt]:
        """Publish 1 to 1,000 messages of any mix in their order, under consecutive numbers; all of them or none.

        A message is its data in the struct of its type: `EventMessage(data=EventData(…))`.
        """
        return await self._publisher.publish_batch(messages, options)

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
        """The number of clients connected to this replica."""
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
        """The number of acks outstanding from the connected clients."""
        return self.hub.unacknowledged

    @property
    def history_depth(self) -> int:
        """The number of events in the Redis history at the last position check."""
        return self._transport.kept

    @property
    def ahead(self) -> int:
        """Events published here but not yet delivered here; publishes wait at `most_ahead`."""
        return self._flow.ahead

    @property
    def ready(self) -> bool:
        """True once Redis was reached."""
        return bool(self._log.place.epoch)

    def get_circuit_state(self) -> CircuitStatus:
        """The circuit of the link to Redis."""
        return self._link.status

    def is_listener_healthy(self) -> bool:
        """Return True if the events of all replicas arrive here, as of the last position check."""
        return self._link.in_use and self._supervisor.healthy

    def is_degraded(self) -> bool:
        """Return True if Redis is unavailable: the circuit is not closed."""
        return self._link.status.state is not CircuitState.CLOSED

    def get_broadcast_metrics(self) -> BroadcastRetryMetrics:
        """Return how many publishes of this replica succeeded and failed, and after how many retries."""
        return self._publisher.metrics


def get_broadcaster(state: Any) -> EventBroadcaster:  # noqa: ANN401  the application's state, whatever framework it is of
    """The dependency provider: the one instance of the application, however many ask at once."""
    broadcaster: EventBroadcaster = state.broadcaster
    return broadcaster

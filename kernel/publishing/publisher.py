"""The way out: a message becomes numbered events on every replica, or an error that says why not."""

import secrets
import time
from collections.abc import Callable, Sequence
from itertools import count

import msgspec

from kernel.errors import (
    BroadcasterError,
    BroadcastFailed,
    CircuitOpen,
    FieldError,
    MessageInvalid,
    NotStarted,
    TransportError,
)
from kernel.log.envelope import TraceContext, encode_tail
from kernel.log.transport import Outgoing, Publication, Transport
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
    wire_type_of,
)
from kernel.messages.validation import check_batch, check_message
from kernel.observer import Failed, Observer, Published, Publishing, Retried
from kernel.position import Fence
from kernel.publishing.flow_control import Window
from kernel.resilience.link import Link
from kernel.resilience.retry import BroadcastRetryMetrics, broadcast_with_retry

__all__ = ["PublishOptions", "Publisher", "Receipt", "ReplayedReceipt"]

_ALERTS = [wire_type for wire_type in MESSAGE_TYPES if wire_type.startswith("alert_")]


class PublishOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a producer says beside the message: the key that makes a repetition harmless, and its trace context.

    The same `idempotency_key` within 300 s publishes nothing again. The others are the W3C headers of these names.
    """

    idempotency_key: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None

    @property
    def trace(self) -> TraceContext:
        """The producer's trace context."""
        return TraceContext(self.traceparent, self.tracestate, self.baggage)


_NONE = PublishOptions()


class Receipt(msgspec.Struct, frozen=True):
    """What a producer gets: the event's position, and how many replicas Redis handed it to at once."""

    sequence: int
    epoch: str
    subscribers: int


class ReplayedReceipt(Receipt, frozen=True):
    """The first receipt again: this publish bore an idempotency key that was seen before."""


class Publisher:
    """One method per message family; all return the receipt, and raise `CircuitOpen` or `BroadcastFailed`.

    They check what they are given and raise `MessageInvalid` with the fields at fault; `publish` does not.
    `fence()` is the last event that this replica delivered, `window` holds publishes back while it is too far behind.
    `delays` are the back-off's base and maximum in seconds.
    """

    def __init__(
        self,
        transport: Transport,
        link: Link,
        *,
        fence: Callable[[], Fence],
        window: Window,
        observer: Observer,
        max_retries: int,
        delays: tuple[float, float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._transport = transport
        self._link = link
        self._fence = fence
        self._window = window
        self._observer = observer
        self._max_retries = max_retries
        self._base_delay, self._max_delay = delays
        self._clock = clock
        self.metrics = BroadcastRetryMetrics()
        # ids of publishes: no two replicas, and no two lives of one, have the same name
        self._name = secrets.token_hex(8)
        self._numbers = count(1)

    async def publish(self, messages: Sequence[Message], options: PublishOptions | None = None) -> list[Receipt]:
        """Publish messages of any mix, in their order, under consecutive numbers and in one round trip.

        They are taken as they are: for those that `decode_message` and `decode_batch` have read, and so checked.
        """
        options = options or _NONE
        types = [wire_type_of(message) for message in messages]
        begin = self._clock()
        try:
            with self._observer.publishing(Publishing(types, options.trace)) as trace:
                id = f"{self._name}-{next(self._numbers)}"
                names = [id] if len(messages) == 1 else [f"{id}-{index}" for index in range(len(messages))]
                pairs = zip(messages, names, strict=True)
                events = [(name, encode_tail(message, name, trace, begin)) for message, name in pairs]
                publication, retries = await self._send(Outgoing(id, options.idempotency_key, events), types)
                self._observer.published(Published(types, publication, retries, self._clock() - begin))
        except BroadcasterError as error:
            self._observer.failed(Failed(types, type(error.__cause__ or error).__name__, self._clock() - begin))
            raise
        made = ReplayedReceipt if publication.replayed else Receipt
        epoch, subscribers = publication.epoch, publication.subscribers
        return [made(publication.first + i, epoch, subscribers) for i in range(publication.size)]

    async def _send(self, outgoing: Outgoing, types: list[str]) -> tuple[Publication, int]:
        """Hand a publish to Redis, with retries; returns how many there were."""
        retries = 0
        tried: TransportError | None = None

        async def attempt() -> Publication:
            nonlocal tried
            self._link.require()
            if tried is None:
                await self._window.enter(len(types), self._link.require)
            else:
                self._window.enter_again(len(types))
            publication = None
            try:
                publication = await self._transport.publish(outgoing, self._fence())
            except TransportError as error:
                tried = error
                self._link.failed(error)
                raise
            finally:
                self._window.leave(len(types), publication)
            self._link.wrote()
            return publication

        def retried(number: int, delay: float, error: Exception) -> None:
            nonlocal retries
            retries = number
            self._observer.retried(Retried(types, number, delay, type(error).__name__))

        try:
            publication = await broadcast_with_retry(
                attempt,
                types[0] if len(types) == 1 else "batch",
                max_retries=self._max_retries,
                base_delay=self._base_delay,
                max_delay=self._max_delay,
                metrics=self.metrics,
                on_retry=retried,
            )
        except (TransportError, CircuitOpen, NotStarted):
            if tried is None:
                raise
            # whatever ended the retries: what was sent may have arrived
            raise BroadcastFailed(str(tried), max(self._link.retry_after, self._base_delay)) from tried
        return publication, retries

    async def broadcast_batch(
        self, messages: Sequence[Message], *, options: PublishOptions | None = None
    ) -> list[Receipt]:
        """Publish 1 to 1,000 messages of any mix, in their order, under consecutive numbers.

        A message is its data under its type: `EventMessage(data=EventData(…))`, `AlertCreatedMessage(data=…)`. One
        that is none or breaks its rules, none at all or more: `MessageInvalid`, and nothing is published.
        """
        return await self.publish(check_batch(messages), options)

    async def broadcast_event(self, data: EventData, *, options: PublishOptions | None = None) -> Receipt:
        """Publish a security event."""
        return await self._one(EventMessage(data=data), options)

    async def broadcast_service_status(
        self, data: ServiceStatusData, *, timestamp: str | None = None, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a service's status; `timestamp` is ISO 8601, the present if None."""
        message = (
            ServiceStatusMessage(data=data)
            if timestamp is None
            else ServiceStatusMessage(data=data, timestamp=timestamp)
        )
        return await self._one(message, options)

    async def broadcast_scene_change(self, data: SceneChangeData, *, options: PublishOptions | None = None) -> Receipt:
        """Publish a scene change."""
        return await self._one(SceneChangeMessage(data=data), options)

    async def broadcast_camera_status(
        self, data: CameraStatusData, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a camera's status."""
        return await self._one(CameraStatusMessage(data=data), options)

    async def broadcast_alert(
        self, data: AlertData | AlertDeletedData, event_type: str, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a step in an alert's life; `event_type` is `alert_created` … `alert_deleted`, or without `alert_`.

        Raises `MessageInvalid` for another type, or for data that is not of that type.
        """
        wire_type = event_type if event_type in _ALERTS else f"alert_{event_type}"
        if wire_type not in _ALERTS:
            raise MessageInvalid([FieldError("type", f"must be one of {', '.join(_ALERTS)}")])
        if isinstance(data, AlertDeletedData) != (wire_type == "alert_deleted"):
            raise MessageInvalid([FieldError("data", f"is not the data of {wire_type}")])
        return await self._one(MESSAGE_TYPES[wire_type](data=data), options)  # type: ignore[arg-type]

    async def broadcast_worker_status(
        self, data: WorkerStatusData, *, timestamp: str | None = None, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a worker's status."""
        return await self._one(WorkerStatusMessage(data=data, timestamp=timestamp), options)

    async def broadcast_detection_new(
        self, data: DetectionNewData, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a detection."""
        return await self._one(DetectionNewMessage(data=data), options)

    async def broadcast_detection_batch(
        self, data: DetectionBatchData, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish a closed batch of detections."""
        return await self._one(DetectionBatchMessage(data=data), options)

    async def broadcast_infrastructure_alert(
        self, data: InfrastructureAlertData, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish an alert about the infrastructure."""
        return await self._one(InfrastructureAlertMessage(data=data), options)

    async def broadcast_summary_update(
        self, hourly: Summary | None, daily: Summary | None, *, options: PublishOptions | None = None
    ) -> Receipt:
        """Publish new summaries; None for one that did not change."""
        return await self._one(SummaryUpdateMessage(data=SummaryUpdateData(hourly=hourly, daily=daily)), options)

    async def _one(self, message: Message, options: PublishOptions | None) -> Receipt:
        return (await self.publish((check_message(message),), options))[0]

"""A message becomes a publish: validation, flow control, retries around the transport, and the receipt.

All attempts of a publish have one id. Redis remembers it for as long as the retries can take, and numbers the publish
once. If an attempt was sent, its event may be in Redis although no answer came. From then on the publish must not be
sent again once Redis may have forgotten the id, however long this process or its machine has stood still. The publish
then fails, and it is unknown whether it was published.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from itertools import count

import msgspec

from kernel.errors import (
    BroadcasterError,
    BroadcastFailed,
    CircuitOpen,
    EventTooLarge,
    NotSent,
    NotStarted,
    TransportError,
)
from kernel.log.envelope import encode_data, encode_tail
from kernel.log.ring import Ring
from kernel.log.transport import Outgoing, Publication, Transport
from kernel.messages.messages import Message, wire_type_of
from kernel.messages.validation import check_batch, check_message
from kernel.observer import Failed, Observer, Published, Publishing, Retried, TraceContext
from kernel.position import Position
from kernel.publishing.flow_control import FlowControl
from kernel.resilience.elapsed import elapsed
from kernel.resilience.link import Link
from kernel.resilience.retry import BroadcastRetryMetrics, broadcast_with_retry

__all__ = ["PublishOptions", "Publisher", "Receipt", "ReplayedReceipt"]


class PublishOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a publish.

    Args:
        idempotency_key: The same key within 300 s publishes nothing again and returns the first receipt.
        traceparent, tracestate, baggage: The W3C headers of these names; the events carry them on.
        validated: True for messages that `decode_message` or `decode_batch` returned; they are not validated again.

    """

    idempotency_key: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    validated: bool = False


_DEFAULT = PublishOptions()


class Receipt(msgspec.Struct, frozen=True):
    """The answer to a producer: the event's position, and how many replicas Redis handed it to at once."""

    sequence: int
    epoch: str
    subscribers: int


class ReplayedReceipt(Receipt, frozen=True):
    """The receipt of an earlier publish with the same idempotency key; nothing was published again."""


class Publisher:
    """Publishes messages through the transport, with retries while the link to Redis works.

    `ring` holds the last event that this replica delivered, which the transport compares with Redis's history.
    `delays` are the base and the maximum of the back-off, `deadline` is the longest time of an attempt, and
    `retry_lifetime` is how long Redis remembers the id of a publish; all are in seconds. `clock()` is in seconds since
    the epoch; `elapsed()` is never set and also counts the time for which the machine sleeps. `event_max_bytes` limits
    the data of one event, as compact JSON.
    """

    def __init__(
        self,
        transport: Transport,
        link: Link,
        ring: Ring,
        flow: FlowControl,
        *,
        observer: Observer,
        max_retries: int,
        delays: tuple[float, float],
        event_max_bytes: int,
        deadline: float,
        retry_lifetime: float,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = elapsed,
    ) -> None:
        self._transport = transport
        self._link = link
        self._ring = ring
        self._flow = flow
        self._observer = observer
        self._max_retries = max_retries
        self._base_delay, self._max_delay = delays
        self._event_max_bytes = event_max_bytes
        # An attempt that starts later than this after the first one could end when the id is forgotten.
        self._most_elapsed = retry_lifetime - deadline
        self._clock = clock
        self._elapsed = elapsed
        self._ended = asyncio.Event()
        self.metrics = BroadcastRetryMetrics()
        # Ids of publishes: no two replicas, and no two lives of one, have the same name.
        self._name = secrets.token_hex(8)
        self._numbers = count(1)

    def start(self) -> None:
        """Publish again after `end`."""
        self._ended.clear()

    def end(self) -> None:
        """Let every publish fail at once that waits for room, for a retry or for Redis, and refuse new ones."""
        self._ended.set()
        self._flow.wake()
        self._transport.end_publishes()

    async def publish(self, message: Message, options: PublishOptions | None = None) -> Receipt:
        """Publish one message.

        Raises MessageInvalid (with every field at fault; EventTooLarge for its size), CircuitOpen, BroadcastFailed or
        NotStarted.
        """
        options = options or _DEFAULT
        if not options.validated:
            message = check_message(message, self._event_max_bytes)
        return (await self._publish((message,), options, batch=False))[0]

    async def publish_batch(self, messages: Sequence[Message], options: PublishOptions | None = None) -> list[Receipt]:
        """Publish 1 to 1,000 messages of any mix in their order, under consecutive numbers and in one round trip.

        Raises what `publish` raises; a batch with one invalid message publishes nothing.
        """
        options = options or _DEFAULT
        if not options.validated:
            messages = check_batch(messages, self._event_max_bytes)
        return await self._publish(messages, options, batch=True)

    async def _publish(self, messages: Sequence[Message], options: PublishOptions, *, batch: bool) -> list[Receipt]:
        encoded = [encode_data(message) for message in messages]
        for index, data in enumerate(encoded):
            if len(data) > self._event_max_bytes:
                raise EventTooLarge(self._event_max_bytes, index if batch else None)
        types = [wire_type_of(message) for message in messages]
        producer = TraceContext(options.traceparent, options.tracestate, options.baggage)
        begin = self._clock()
        try:
            with self._observer.publishing(Publishing(types, producer)) as trace:
                id = f"{self._name}-{next(self._numbers)}"
                names = [id] if len(messages) == 1 else [f"{id}-{index}" for index in range(len(messages))]
                parts = zip(messages, encoded, names, strict=True)
                events = [(name, encode_tail(message, data, name, trace, begin)) for message, data, name in parts]
                publication, retries = await self._send(Outgoing(id, options.idempotency_key, events), types)
                epoch, first, size, subscribers, replayed = publication
                seconds = self._clock() - begin
                self._observer.published(
                    Published(types, Position(epoch, first), subscribers, replayed, retries, seconds)
                )
        except BroadcasterError as error:
            self._observer.failed(Failed(types, type(error.__cause__ or error).__name__, self._clock() - begin))
            raise
        made = ReplayedReceipt if replayed else Receipt
        return [made(first + index, epoch, subscribers) for index in range(size)]

    async def _send(self, outgoing: Outgoing, types: list[str]) -> tuple[Publication, int]:
        """Hand a publish to the transport, with retries; return the outcome and the number of retries."""
        retries = 0
        failure: TransportError | None = None
        # When the first attempt of which something may have been sent began.
        sent_at: float | None = None

        async def attempt() -> Publication:
            nonlocal failure, sent_at
            self._require()
            if sent_at is not None and self._elapsed() - sent_at > self._most_elapsed:
                raise self._failed(failure)
            if failure is None:
                await self._flow.enter(len(types), self._require)
            else:
                self._flow.enter_again(len(types))
            publication = None
            begin = self._elapsed()
            try:
                publication = await self._transport.publish(outgoing, self._ring.fence)
            except NotSent as error:
                failure = failure or error
                # If the circuit has opened, or publishing has ended, there is nothing to retry.
                self._require()
                raise
            except TransportError as error:
                failure = error
                sent_at = begin if sent_at is None else sent_at
                self._link.failed(error)
                if self._ended.is_set():
                    self._require()
                raise
            finally:
                self._flow.leave(len(types), publication)
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
                sleep=self._pause,
            )
        except (TransportError, CircuitOpen, NotStarted) as error:
            if failure is None or (sent_at is None and not isinstance(error, TransportError)):
                raise
            # Whatever ended the retries, an attempt that was sent may have arrived.
            raise self._failed(failure) from failure
        return publication, retries

    def _failed(self, failure: TransportError | None) -> BroadcastFailed:
        return BroadcastFailed(str(failure), max(self._link.retry_after, self._base_delay))

    def _require(self) -> None:
        if self._ended.is_set():
            raise NotStarted("publishing has ended: this replica stops")
        self._link.require()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

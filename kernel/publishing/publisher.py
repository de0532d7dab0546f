"""The publisher: validates messages, waits for room, hands them to the transport with retries, and returns receipts.

All attempts of a publish have one id. Redis remembers the id for as long as the retries can take (`retry_lifetime`),
and numbers the publish once. An attempt that was sent may have reached Redis although no answer came. If the publish
were sent again after Redis has forgotten the id, its events would be numbered twice. It therefore fails instead if this
process or its machine was suspended for too long; then it is unknown whether the events were published.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final

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
        idempotency_key: A second publish with the same key within 300 s returns the first receipt, and adds nothing.
        traceparent, tracestate, baggage: The W3C headers of these names; the events carry them on.
        validated: True for messages that `decode_message` or `decode_batch` returned; they are not validated again.

    """

    idempotency_key: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    validated: bool = False


_DEFAULT = PublishOptions()

_REFUSALS: Final[Mapping[type[Exception], str]] = {CircuitOpen: "circuit open", NotStarted: "stopped"}


class Receipt(msgspec.Struct, frozen=True):
    """The answer to a producer: the event's position, and the number of replicas that were subscribed then."""

    sequence: int
    epoch: str
    subscribers: int


class ReplayedReceipt(Receipt, frozen=True):
    """The receipt of an earlier publish with the same idempotency key; nothing was published again."""


class _Progress:
    """The retries of a publish until now, and why no further attempt was made (see `Failed.refused`)."""

    __slots__ = ("refused", "retries")

    def __init__(self) -> None:
        self.retries = 0
        self.refused: str | None = None


class Publisher:
    """Publishes messages through the transport, with retries, and refuses them while the circuit is open.

    `ring` holds the last event that this replica delivered, which the transport compares with Redis's history.
    `delays` are the base and the maximum of the back-off, `deadline` is the longest time of an attempt, and
    `retry_lifetime` is how long Redis remembers the id of a publish; all are in seconds. `clock()` is in seconds since
    1970. `elapsed()` is a clock, in seconds, that is never adjusted and that also counts the time for which the machine
    sleeps. `event_max_bytes` limits the data of one event, as compact JSON.
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
        # An attempt that starts more seconds after the first one could reach Redis when the id is forgotten.
        self._most_elapsed = retry_lifetime - deadline
        self._clock = clock
        self._elapsed = elapsed
        self._ended = asyncio.Event()
        self.metrics = BroadcastRetryMetrics()
        # The ids of publishes are this name and a number. Each process of each replica has a name of its own.
        self._name = secrets.token_hex(8)
        self._numbers = count(1)

    def start(self) -> None:
        """Publish again after `end`."""
        self._ended.clear()

    def end(self) -> None:
        """Let publishes that wait for room, for a retry or for Redis fail at once, and refuse new ones."""
        self._ended.set()
        self._flow.wake()
        self._transport.end_publishes()

    async def publish(self, message: Message, options: PublishOptions | None = None) -> Receipt:
        """Publish one message.

        Raises MessageInvalid with every invalid field (its subclass EventTooLarge for the size), CircuitOpen,
        BroadcastFailed or NotStarted. A TransportError is never raised: it becomes BroadcastFailed.
        """
        options = options or _DEFAULT
        if not options.validated:
            message = check_message(message, self._event_max_bytes)
        return (await self._publish((message,), options, batch=False))[0]

    async def publish_batch(self, messages: Sequence[Message], options: PublishOptions | None = None) -> list[Receipt]:
        """Publish 1 to 1,000 messages, of different types if need be, in order and with consecutive numbers.

        Raises what `publish` raises. If one message is invalid, none is published.
        """
        options = options or _DEFAULT
        if not options.validated:
            messages = check_batch(messages, self._event_max_bytes)
        return await self._publish(messages, options, batch=True)

    async def _publish(self, messages: Sequence[Message], options: PublishOptions, *, batch: bool) -> list[Receipt]:
        encoded = [encode_data(message) for message in messages]
        for index, size in enumerate(map(len, encoded)):
            if size > self._event_max_bytes:
                raise EventTooLarge(self._event_max_bytes, index if batch else None)
        types = [wire_type_of(message) for message in messages]
        trace = TraceContext(options.traceparent, options.tracestate, options.baggage)
        begin = self._clock()
        id = f"{self._name}-{next(self._numbers)}"
        progress = _Progress()
        with self._observer.publishing(Publishing(types, trace, id)) as trace:
            followed = self._followed(trace)
            event_ids = [id] if len(messages) == 1 else [f"{id}-{index}" for index in range(len(messages))]
            events = [
                (event_id, encode_tail(message, data, event_id, trace, begin))
                for message, data, event_id in zip(messages, encoded, event_ids, strict=True)
            ]
            del encoded  # it may be large, and many publishes may wait for Redis
            try:
                publication = await self._send(Outgoing(id, options.idempotency_key, events), types, progress)
            except BroadcasterError as error:
                name, seconds = type(error.__cause__ or error).__name__, self._clock() - begin
                self._observer.failed(Failed(types, name, progress.retries, progress.refused, seconds, followed))
                raise
            epoch, first, size, subscribers, replayed = publication
            seconds = self._clock() - begin
            self._observer.published(
                Published(types, Position(epoch, first), subscribers, replayed, progress.retries, seconds, followed)
            )
        made = ReplayedReceipt if replayed else Receipt
        return [made(first + index, epoch, subscribers) for index in range(size)]

    async def _send(self, outgoing: Outgoing, types: list[str], progress: _Progress) -> Publication:
        """Hand a publish to the transport, with retries; raises BroadcastFailed, CircuitOpen or NotStarted."""
        failure: TransportError | None = None
        # The time at which the first attempt began that may have reached Redis.
        sent_at: float | None = None

        async def attempt() -> Publication:
            nonlocal failure, sent_at
            self._require()
            if sent_at is not None and self._elapsed() - sent_at > self._most_elapsed:
                progress.refused = "suspended"
                raise self._failed(failure)
            if failure is None:
                await self._flow.enter(len(types), self._require)
            else:
                self._flow.enter_without_waiting(len(types))
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
            self._link.write_succeeded()
            return publication

        def retried(number: int, delay: float, error: Exception) -> None:
            progress.retries = number
            self._observer.retried(Retried(types, number, delay, type(error).__name__))

        try:
            return await broadcast_with_retry(
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
            progress.refused = _REFUSALS.get(type(error))
            if failure is None or (sent_at is None and not isinstance(error, TransportError)):
                raise
            # Something may have been sent, so the answer must be that the publish failed and may have happened.
            raise self._failed(failure) from failure

    def _followed(self, trace: TraceContext) -> str | None:
        """Return the traceparent if an observer follows it."""
        if trace.traceparent is not None and self._observer.follows(trace.traceparent):
            return trace.traceparent
        return None

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

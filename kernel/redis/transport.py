"""The transport over Redis; the only module that uses redis-py.

It has three connections: one for publishes, which share calls; one for position checks and reads of the history; and
one for the subscription.

redis-py's own retries are switched off, because the kernel retries a publish itself, under the same id. Its timeouts
per reply, which cost 10 µs each, are switched off as well: here each call as a whole has a deadline.
"""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextvars import copy_context
from itertools import chain
from typing import Any, TypeAlias, TypeVar

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from kernel.errors import TransportUnavailable
from kernel.log.envelope import Entry, decode_announcement, decode_entry
from kernel.log.transport import Batch, Outgoing, Page, Publication
from kernel.observer import Observer, Observers
from kernel.position import NOWHERE, Fence, Position
from kernel.redis.connections import adapt_connections
from kernel.redis.failures import deadline_missed, is_read_only, transport_error
from kernel.redis.publish_queue import PendingPublish, PublishQueue
from kernel.redis.script import Script
from kernel.redis.subscriber import BROKEN, Subscriber
from kernel.resilience.circuit import CircuitState
from kernel.resilience.elapsed import elapsed

__all__ = ["RedisTransport"]

_PUBLISH, _READ = Script("publish.lua"), Script("read.lua")

_KEY_LIFETIME = 300.0
# The bounds of one batch from the subscription, in messages and bytes. It is decoded without yielding to the event
# loop.
MOST_HEARD = 1024
MOST_BYTES = 128 * 1024

# How many bytes of the history one answer may hold, and to how little that goes down on a slow link.
_MOST_READ = 1024 * 1024
_LEAST_READ = 16 * 1024

_T = TypeVar("_T")
# The clients and the replies of redis-py.
_Untyped: TypeAlias = Any


class RedisTransport:
    """A `Transport` over Redis ≥ 6.2 or Valkey.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        channel: The name of the pub/sub channel, and in braces the prefix of all keys.
        history_size: How many events the history keeps at least.
        deadline: The longest time of each call, in seconds.
        retry_lifetime: How long a publish may be retried under its id, in seconds.
        observers: They choose the context in which a shared call runs.

    """

    def __init__(
        self,
        url: str,
        *,
        channel: str = "security_events",
        history_size: int = 10_000,
        deadline: float = 5.0,
        retry_lifetime: float = 60.0,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.kept = 0
        self._observers = Observers(observers)
        self._channel = channel
        self._history_size = history_size
        self._deadline = deadline
        # Redis rejects a lifetime of 0, and one that ends beyond its largest time.
        self._retry_lifetime = min(max(retry_lifetime, 0.001), 1e9)
        self._position_key = f"{{{channel}}}:position"
        self._history_key = f"{{{channel}}}:history"
        self._record_prefix = f"{{{channel}}}:idempotency:"
        options: dict[str, Any] = {
            "socket_connect_timeout": deadline,
            "socket_timeout": None,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        self._publisher: Any = redis.Redis.from_url(url, max_connections=2, **options)
        self._reader: Any = redis.Redis.from_url(url, **options)
        self._subscriber: Any = redis.Redis.from_url(url, **options | {"socket_timeout": deadline})
        for client in (self._publisher, self._reader, self._subscriber):
            adapt_connections(client.connection_pool)
        self._subscriptions: set[Any] = set()
        self._queue = PublishQueue(self._send, deadline)
        self._read_bytes = _MOST_READ

    async def close(self) -> None:
        """Close every connection. It may be called twice, and the transport can be used again afterwards."""
        await self._queue.close()
        await self.disconnect()

    async def disconnect(self) -> None:
        """Close all connections, so that the next call reconnects: the current server may be a former primary."""
        for pubsub in tuple(self._subscriptions):
            await pubsub.connection.disconnect(nowait=True)
        await self._drop(self._publisher, self._reader)

    async def publish(self, outgoing: Outgoing, fence: Fence) -> Publication:
        """Number, store and announce events in one step; a repeated id or key returns the first publication again."""
        name = outgoing.id if outgoing.key is None else hashlib.sha256(outgoing.key.encode()).hexdigest()
        # A key is never forgotten while its own publish may be retried.
        lifetime = self._retry_lifetime if outgoing.key is None else max(_KEY_LIFETIME, self._retry_lifetime)
        events = outgoing.events
        index = " ".join([f"{id} {len(tail)}" for id, tail in events])
        tails = b"".join([tail for _, tail in events])
        epoch, first, count, subscribers, replayed = await self._queue.put(
            self._record_prefix + name,
            (outgoing.id, int(lifetime * 1000), index, tails),
            fence,
            events=len(events),
            size=len(tails),
            context=copy_context(),
        )
        return Publication(epoch.decode(), first, count, subscribers, bool(replayed))

    def circuit_changed(self, state: CircuitState) -> None:
        """Fail the publishes that were not sent yet with `NotSent` if the circuit has opened."""
        self._queue.circuit_changed(state)

    def end_publishes(self) -> None:
        """Fail every publish: with `NotSent` those that were not sent yet, the others with `TransportUnavailable`."""
        self._queue.give_up("publishing has ended")

    async def position(self, fence: Fence, *, probe: bool = False) -> Position:
        """Return the current position in Redis.

        The script starts a new epoch if Redis has no position or if `fence` proves a fork. With `probe`, it also writes
        a record that expires after a second, to find out whether Redis accepts writes.
        """
        name = "probe-" + secrets.token_hex(8)
        records, request = ([self._record_prefix + name], [name, 1000, "", ""]) if probe else ([], [])
        epoch, sequence, oldest, _ = await self._script(self._reader, records, fence, request)
        self.kept = max(0, sequence + 1 - oldest)
        return Position(epoch.decode(), sequence)

    async def read(self, first: int, last: int, witness: int = 0) -> Page:
        """Return the events from `first` to `last`, both included, that the history still has and one answer may hold.

        The page also names the id of the event `witness`, so that the reader can see whether this is the history that
        it knows. An answer holds 1 MiB or one event, less after one that missed its deadline, and more after a quick
        one.
        """
        allowed = self._read_bytes
        begin = asyncio.get_running_loop().time()
        try:
            epoch, sequence, oldest, entries, beyond, known = await self._call(
                self._reader,
                _READ,
                (self._position_key, self._history_key),
                (first, last, last + 1, allowed, witness),
            )
        except TransportUnavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                self._read_bytes = max(_LEAST_READ, allowed // 2)
            raise
        if asyncio.get_running_loop().time() - begin < self._deadline / 4:
            self._read_bytes = min(_MOST_READ, max(self._read_bytes, allowed * 2))
        try:
            position = Position((epoch or b"").decode(), int(sequence or 0))
        except ValueError:  # foreign data in the key; the next position check starts a new epoch
            position = NOWHERE
        kept = [entry for id, fields in entries if (entry := _entry(id, fields)) is not None]
        oldest_kept = int(oldest.partition(b"-")[0]) if oldest else position.sequence + 1
        after = int(beyond.partition(b"-")[0]) if beyond else position.sequence + 1
        if beyond and after == first <= last:
            after += 1  # foreign entries with one number fill the answer; the next part must begin later all the same
        return Page(position, oldest_kept, kept, after, (known or b"").decode(errors="replace"))

    async def listen(self, idle: float) -> AsyncGenerator[Batch, None]:
        """Subscribe and yield an empty batch, then yield batches of announcements as they arrive.

        If nothing arrives for `idle` seconds, an empty batch is yielded. An answered ping may cause one earlier.
        """
        loop = asyncio.get_running_loop()
        pubsub = self._subscriber.pubsub(ignore_subscribe_messages=False)
        subscriber = Subscriber(pubsub, loop.time())
        try:
            await self._bounded(self._subscriber, lambda: pubsub.subscribe(self._channel))
            await subscriber.confirm(self._deadline)
            self._subscriptions.add(pubsub)
            yield Batch([], 0)
            while True:
                await self._bounded(self._subscriber, lambda: subscriber.ping(loop.time()))
                payloads: list[bytes] = []
                size = 0
                payload = await subscriber.payload(idle)
                while payload is not None:
                    payloads.append(payload)
                    size += len(payload)
                    full = size >= MOST_BYTES or len(payloads) >= MOST_HEARD
                    payload = None if full else await subscriber.payload(0)
                announcements = [a for p in payloads if (a := decode_announcement(p)) is not None]
                yield Batch(announcements, len(payloads) - len(announcements))
        finally:
            self._subscriptions.discard(pubsub)
            with contextlib.suppress(RedisError, OSError):
                await pubsub.aclose()

    async def _send(self, group: Sequence[PendingPublish], seconds: float) -> Sequence[Any]:
        now = elapsed()
        context = self._observers.sharing(
            [publish.context for publish in group], [now - publish.begin for publish in group]
        )
        sending = self._script(
            self._publisher,
            [publish.record for publish in group],
            group[-1].fence,
            list(chain.from_iterable([publish.arguments for publish in group])),
            seconds,
        )
        *_, replies = await (sending if context is None else asyncio.create_task(sending, context=context))
        answers: Sequence[Any] = replies
        return answers

    async def _script(
        self, client: _Untyped, records: list[str], fence: Fence, requests: list[Any], seconds: float | None = None
    ) -> _Untyped:
        """Call the script that publishes and checks the position."""
        (epoch, sequence), id, (verified, verified_id), left, doubts = fence
        keys = [self._position_key, self._history_key, *records]
        # The name of the new epoch, if this call has to start one.
        fresh = secrets.token_hex(8)
        past = (epoch, sequence, id, verified, verified_id, " ".join(left), int(doubts > 0))
        arguments = (self._channel, self._history_size, fresh, *past, *requests)
        return await self._call(client, _PUBLISH, keys, arguments, seconds)

    async def _call(
        self,
        client: _Untyped,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Any],
        seconds: float | None = None,
    ) -> _Untyped:
        """Call a script; if Redis does not have it, load it first."""
        command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)

        async def call() -> Any:  # noqa: ANN401  redis-py's replies are untyped
            try:
                return await client.execute_command(*command)
            except NoScriptError:
                await client.script_load(script.text)
                return await client.execute_command(*command)

        return await self._bounded(client, call, seconds)

    async def _bounded(self, client: _Untyped, call: Callable[[], Awaitable[_T]], seconds: float | None = None) -> _T:
        seconds = self._deadline if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                return await call()
        except TimeoutError as error:
            await self._drop(client)
            raise deadline_missed(seconds) from error
        except BROKEN as error:
            if is_read_only(error):
                await self.disconnect()
            raise transport_error(error) from error

    async def _drop(self, *clients: Any) -> None:  # noqa: ANN401  redis-py's client is generic
        disconnects = (client.connection_pool.disconnect(inuse_connections=True) for client in clients)
        await asyncio.gather(*disconnects, return_exceptions=True)


def _entry(id: bytes, fields: list[bytes]) -> Entry | None:
    number, _, rest = id.partition(b"-")
    return decode_entry(int(number), dict(zip(fields[::2], fields[1::2], strict=True))) if rest == b"0" else None

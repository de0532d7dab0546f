"""Groups publishes that arrive while a call is in flight into the next call, and fails those whose time is over.

Theory of operation
-------------------

A publish is *pending*, then *sent* as one of a group, then *done*. One task sends one group after the other, until
nothing is pending.

Each publish has one deadline, from its arrival. A publish that was pending for half of it fails as not sent, so that
every call has time to be answered; the call of a group ends at the deadline of its oldest member. Therefore no publish
takes longer than its deadline, however many are before it.

If a call fails because Redis cannot be reached, the publishes after it would fail one by one in the same way. All that
are pending fail at once, as not sent. The same happens when the circuit opens. If Redis answered with a refusal, the
next group is sent, unless the refusal has opened the circuit.

Invariants: `NotSent` is raised only for publishes of which nothing was sent. Nothing is sent after the circuit has
opened. Not here: the call itself (`send`).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from typing import Any, NamedTuple

from kernel.errors import NotSent, TransportError, TransportUnavailable
from kernel.position import Fence
from kernel.resilience.circuit import CircuitState
from kernel.resilience.elapsed import elapsed
from kernel.resilience.tasks import end

__all__ = ["PendingPublish", "PublishQueue"]

_CLOSED = "the link to Redis was closed"


class PendingPublish(NamedTuple):
    """A publish that waits for its call, or for its answer.

    `record` is the key of its idempotency record, and `arguments` are its arguments for the script. `events` and `size`
    (in bytes) count towards the bounds of a call. `context` is the publisher's context, `begin` the time of its
    arrival, and `answer` gets the reply.
    """

    record: str
    arguments: tuple[str, int, str, bytes]
    fence: Fence
    events: int
    size: int
    context: Context
    begin: float
    answer: asyncio.Future[Any]


class PublishQueue:
    """Sends publishes in groups, in the order of their arrival.

    `send(group, seconds)` makes the call, which may take `seconds`, and returns a reply for each publish of the group;
    it raises TransportError. `deadline` is the longest time of a publish, in seconds by `clock`. `most_events` and
    `most_bytes` bound one call: Redis serves no other client meanwhile, and replicas decode its payload in one go.
    """

    def __init__(
        self,
        send: Callable[[Sequence[PendingPublish], float], Awaitable[Sequence[Any]]],
        deadline: float,
        *,
        clock: Callable[[], float] = elapsed,
        most_events: int = 1000,
        most_bytes: int = 1024 * 1024,
    ) -> None:
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._send = send
        self._deadline = deadline
        self._clock = clock
        self._pending: deque[PendingPublish] = deque()
        self._sent: Sequence[PendingPublish] = ()
        self._sender: asyncio.Task[None] | None = None

    async def put(
        self,
        record: str,
        arguments: tuple[str, int, str, bytes],
        fence: Fence,
        *,
        events: int,
        size: int,
        context: Context,
    ) -> Any:  # noqa: ANN401  whatever `send` returns
        """Send a publish after all others, and return the reply to it."""
        # The sender runs in the same loop. Up to Python 3.11, get_running_loop() makes a system call.
        loop = asyncio.get_running_loop() if self._sender is None else self._sender.get_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        publish = PendingPublish(record, arguments, fence, events, size, context, self._clock(), answer)
        self._pending.append(publish)
        if self._sender is None:
            self._sender = loop.create_task(self._send_all())
        return await answer

    def refuse(self, reason: str) -> None:
        """Fail every publish that was not sent yet."""
        pending, self._pending = self._pending, deque()
        _fail(pending, NotSent(reason))

    def circuit_changed(self, state: CircuitState) -> None:
        """Fail every publish that was not sent yet if the circuit has opened."""
        if state is not CircuitState.CLOSED:
            self.refuse("the circuit opened before the publish was sent")

    def give_up(self, reason: str) -> None:
        """Fail every publish; those that were sent may have reached Redis."""
        self.refuse(reason)
        _fail(self._sent, TransportUnavailable(reason))

    async def close(self) -> None:
        """Fail every publish, and return when nothing is being sent any more."""
        self.give_up(_CLOSED)
        sender = self._sender
        if sender is not None:
            await end([sender])
            # A task that is cancelled before its first step never reaches its `finally`.
            if self._sender is sender:
                self._sender = None
                self.give_up(_CLOSED)

    async def _send_all(self) -> None:
        try:
            while group := self._next_group():
                self._sent = group
                try:
                    replies = await self._send(group, group[0].begin + self._deadline - self._clock())
                except TransportError as error:
                    _fail(group, error)
                    if isinstance(error, TransportUnavailable):
                        self.refuse(f"not sent, because the call before it failed: {error}")
                    # Before anything is sent, the publishers report the failure to the link. It may open the circuit.
                    await asyncio.sleep(0)
                else:
                    for publish, reply in zip(group, replies, strict=True):
                        if not publish.answer.done():  # else its publisher was cancelled, or all were given up
                            publish.answer.set_result(reply)
        except BaseException:
            self.give_up(_CLOSED)
            raise
        finally:
            self._sent, self._sender = (), None

    def _next_group(self) -> list[PendingPublish]:
        """Remove and return the publishes of the next call: the first, and as many after it as the bounds allow."""
        self._refuse_late()
        events = size = 0
        group: list[PendingPublish] = []
        while self._pending:
            publish = self._pending[0]
            events += publish.events
            size += publish.size
            if group and (events > self._most_events or size > self._most_bytes):
                break
            group.append(self._pending.popleft())
        return group

    def _refuse_late(self) -> None:
        latest = self._clock() - self._deadline / 2
        late = []
        while self._pending and (self._pending[0].answer.done() or self._pending[0].begin <= latest):
            late.append(self._pending.popleft())
        if late:
            _fail(late, NotSent(f"not sent within {self._deadline / 2:g} s: Redis is slow to answer those before it"))


def _fail(publishes: Iterable[PendingPublish], error: TransportError) -> None:
    for publish in publishes:
        if not publish.answer.done():
            publish.answer.set_exception(error)

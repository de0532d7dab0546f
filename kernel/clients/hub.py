"""The hub: this replica's clients, from the connection to the close.

Theory of operation. A client is in one of three states (`ClientState`).

- *Live*: it stands at the end of the log and is in the audience of its patterns and encoding. The fan-out writes to it.
- *Behind*: a task of its own reads the log after its place (`CatchUp`), and makes it live when nothing is left to read.
  If the next events are no longer kept, or the task fails, the hub closes the connection. The client then stays behind,
  without a task, until it is disconnected.
- *Gone*: it is disconnected, and the hub no longer knows it.

A client that connects becomes live at once, or starts behind if it connects with a resume. A live client falls behind
when its socket is full (`fall_behind`), when it asks for a replay or, during a delivery, changes its patterns
(`receive`), or when a delivery that failed did not reach it. A `resync` message goes through these calls: `receive`,
`_resume`, `_put_behind`, `_catch_up`, `CatchUp.proceed` with a `Replay`, `_go_live`.

Invariant. The state changes in one step, without an await: a client is in an audience if and only if it is live, and no
task reads the log for it then. This matters most when a catch-up ends. If there were an await between the read that
finds nothing left and `_go_live`, an event that arrived in between would never be written to the client.
"""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator

import msgspec

from kernel.clients.acks import AckLedger, requires_acks
from kernel.clients.audiences import Audiences
from kernel.clients.catchup import CatchUp, Step
from kernel.clients.client import Client, ClientState, Sink
from kernel.clients.close_reasons import INTERNAL_ERROR, SLOW_CLIENT
from kernel.clients.commands import interpret
from kernel.clients.fanout import Walk
from kernel.clients.pace import Pace
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.clients.replay import Resume
from kernel.clients.token_bucket import TokenBucket
from kernel.log.check_requests import CheckRequests
from kernel.log.encodings import Encoding
from kernel.log.frames import Frame, NumberField
from kernel.log.log import Log
from kernel.messages.control import Connected, Error, ServiceNotice
from kernel.messages.messages import utc_now
from kernel.observer import Acknowledged, Observer
from kernel.resilience.circuit import CircuitState

__all__ = ["Hub"]

_logger = logging.getLogger(__name__)

# A resync costs a read of the log. A client may ask for 4 at once, and then for one every 5 seconds.
_RESYNCS_AT_ONCE = 4
_RESYNC_SECONDS = 5.0


class Hub:
    """The clients of one replica.

    `checks` takes requests for a position check. `chunk` is how many bytes of a catch-up are joined into one write, and
    `number_field` is the name of an event's number. `clock()` is in seconds since 1970; `timer()`, by which long work
    yields to the event loop, is in seconds on any clock.
    """

    def __init__(
        self,
        log: Log,
        *,
        checks: CheckRequests,
        observer: Observer,
        chunk: int,
        number_field: NumberField = "sequence",
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._log = log
        self._number_field = number_field
        self._checks = checks
        self._observer = observer
        self._chunk = chunk
        self._clock = clock
        self._timer = timer
        self._degraded = False
        self._ledger = AckLedger()
        self._audiences: Audiences[Client, Encoding] = Audiences()
        self._clients: dict[Client, asyncio.Task[None] | None] = {}
        self._walk: Walk | None = None
        self._notifying: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._clients))

    def connect(
        self, sink: Sink, encoding: Encoding, *, patterns: Patterns = EVERYTHING, resume: Resume | None = None
    ) -> Client:
        """Add a client and return it.

        Its first message is written now. With `resume`, the events that it missed follow, and then live events; without
        it, live events follow.
        """
        here = self._log.place
        client = Client(f"{encoding.kind}-events-{secrets.token_hex(4)}", sink, encoding, here, patterns)
        self._clients[client] = None
        seq = here.sequence if self._number_field == "seq" else msgspec.UNSET
        client.tell(Connected(client.id, here.epoch, here.sequence, seq), here if resume is None else None)
        if self._degraded:
            client.tell(ServiceNotice.degraded(utc_now()))
        if resume is None:
            self._go_live(client)
            return client
        client.resumes.append(resume)
        client.place = resume.provisional_place(here)
        self._put_behind(client)
        return client

    def disconnect(self, client: Client) -> None:
        """Remove a client and cancel its catch-up; do nothing if it is gone already."""
        if client in self._clients:
            self._observer.left(self._ledger.owed(client))
        task = self._clients.pop(client, None)
        if task is not None:
            task.cancel()
        self._leave_audience(client)
        client.state = ClientState.GONE

    def receive(self, client: Client, message: str | bytes) -> bool:
        """Act on a message from a client, and write the answer, if any, after everything that was written before.

        A `resync` is answered by its replay, which ends with a `resync_ack`. Returns True if the message was light,
        which means an ack or a pong.
        """
        decision = interpret(message, client.patterns)
        if decision.patterns is not None and decision.patterns is not client.patterns:
            self._change_patterns(client, decision.patterns)
        if decision.ack is not None:
            self.acknowledge(client, decision.ack)
        if decision.resume is not None:
            self._resume(client, decision.resume)
        if decision.reply is not None:
            client.tell(decision.reply)
        return decision.light

    def acknowledge(self, client: Client, sequence: int) -> bool:
        """Record a client's ack of all events up to `sequence`; return True if it is the client's highest ack."""
        sent_at = self._ledger.sent_at(client, sequence)
        raised = client.acknowledge(sequence)
        seconds = self._clock() - sent_at if raised and sent_at is not None else None
        self._observer.acknowledged(Acknowledged(seconds))
        return raised

    @property
    def unacknowledged(self) -> int:
        """The number of acks outstanding, over all connected clients; may be read on any thread."""
        return self._ledger.outstanding(self._audiences, self)

    def heartbeat(self, client: Client) -> None:
        """Send a client a heartbeat, which contains the client's place."""
        client.tell(client.heartbeat())

    def circuit_changed(self, state: CircuitState) -> None:
        """Notify every client that degraded mode begins or ends; if a socket is full, once it has drained.

        A small fleet is notified now. For a large one the event loop runs in between, and clients that were not yet
        notified when the state changes again are notified of the new state alone.
        """
        self._degraded = state is not CircuitState.CLOSED
        notice = ServiceNotice.degraded(utc_now()) if self._degraded else ServiceNotice.healthy(utc_now())
        if self._notifying is not None:
            self._notifying.cancel()
            self._notifying = None
        steps = self._notify(notice)
        if any(True for _ in steps):  # stops after the first step
            self._notifying = asyncio.create_task(_finish(steps))

    def fall_behind(self, client: Client) -> None:
        """Put a live client behind because its socket is full; it catches up when the socket has drained."""
        if client.state is ClientState.LIVE:
            self._observer.slowed()
            self._put_behind(client)

    async def deliver(self, frames: list[Frame], begin: float) -> Walk:
        """Write the frames that were just appended to the log to each live client; return the finished walk.

        `begin` is when the delivery of the whole batch started, in seconds since 1970; acks are timed from it.
        """
        self._ledger.enter(frames, begin)
        walk = self._walk = Walk(frames, self._audiences, self._timer)
        steps = iter(walk)
        try:
            for _ in steps:
                await asyncio.sleep(0)
        except Exception:
            self._put_unreached_behind(walk)
            raise
        finally:
            # If this is cancelled, finish the walk: the remaining clients would be live without having these frames,
            # and no later walk writes them.
            for _ in steps:
                pass
            self._walk = None
        return walk

    def _notify(self, notice: ServiceNotice) -> Iterator[None]:
        """Notify the clients that are connected now; each step ends where the event loop should run."""
        pace = Pace(self._timer)
        for client in self:
            if client.state is not ClientState.GONE:
                client.notify(notice)
            if pace.over:
                yield
                pace.restart()

    def _change_patterns(self, client: Client, patterns: Patterns) -> None:
        """Replace a client's patterns; the old ones decide about frames of a walk that it can be given at once."""
        if client.state is ClientState.LIVE:
            if self._walk is not None and not self._walk.reach(client):
                self._put_behind(client)
            self._leave_audience(client)
        if not requires_acks(client.patterns):
            client.clear_acks()
        client.patterns = patterns
        # `reach` may have filled the socket, which calls `fall_behind`; then the client is no longer live
        if client.state is ClientState.LIVE:
            self._join_audience(client)

    def _resume(self, client: Client, resume: Resume) -> None:
        if client.resyncs is None:
            client.resyncs = TokenBucket(1 / _RESYNC_SECONDS, _RESYNCS_AT_ONCE, self._clock())
        # While Redis is unavailable, replays wait, and the rate alone would let more and more of them wait. At most
        # `_RESYNCS_AT_ONCE` may wait, and one more: the resume with which the client connected.
        full = len(client.resumes) > _RESYNCS_AT_ONCE
        wait = _RESYNC_SECONDS if full else client.resyncs.take(self._clock())
        if wait:
            text = f"Too many resyncs: {_RESYNCS_AT_ONCE} are answered at once, then one every {_RESYNC_SECONDS:g} s"
            client.tell(Error("rate_limited", text, {"retry_after_ms": math.ceil(wait * 1000)}))
            return
        client.resumes.append(resume)
        if client.state is ClientState.LIVE:
            self._put_behind(client)

    def _go_live(self, client: Client) -> None:
        client.state = ClientState.LIVE
        client.place = self._log.place
        self._join_audience(client)

    def _put_unreached_behind(self, walk: Walk) -> None:
        """After a walk that failed, put the live clients that it did not reach behind; they read its frames."""
        for client in self:
            if client.state is ClientState.LIVE and client.place != walk.end:
                self._put_behind(client)

    def _join_audience(self, client: Client) -> None:
        client.audience = self._audiences.join(client, client.patterns, client.encoding)
        if self._walk is not None:
            self._walk.pass_over(client)

    def _leave_audience(self, client: Client) -> None:
        if client.audience is not None:
            self._audiences.leave(client, client.audience)
            client.audience = None
            if self._walk is not None:
                self._walk.pass_over(client)

    def _put_behind(self, client: Client) -> None:
        """Put a client that is live or new behind, and start its catch-up."""
        self._leave_audience(client)
        client.state = ClientState.BEHIND
        self._clients[client] = asyncio.create_task(self._catch_up(client))

    async def _catch_up(self, client: Client) -> None:
        """Catch up a client that is behind, until it is live or closed; this is the body of its task."""
        catch_up = CatchUp(
            client, self._log, observer=self._observer, chunk=self._chunk, clock=self._clock, timer=self._timer
        )
        try:
            while (step := await catch_up.proceed()) is Step.CHECK_POSITION:
                await self._checks.completed()
            # There must be no await between the last read of the log and this (see the invariant above).
            if step is Step.GO_LIVE:
                self._go_live(client)
            else:
                client.close(SLOW_CLIENT)
        except Exception:
            _logger.exception("closing client %s: its catch-up failed", client.id)
            client.close(INTERNAL_ERROR)
        finally:
            if self._clients.get(client) is asyncio.current_task():
                self._clients[client] = None


async def _finish(steps: Iterator[None]) -> None:
    """Take the remaining steps, and let the event loop run before each."""
    await asyncio.sleep(0)
    for _ in steps:
        await asyncio.sleep(0)

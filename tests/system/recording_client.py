"""Clients that record every frame for the history checker, over all their connections."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from websockets.exceptions import WebSocketException

from tests.history import ClientRecord, Connection, History, Reader
from tests.system.client import PATIENCE, Client, Frame
from tests.system.replica import Replica

__all__ = ["PATTERNS", "ReconnectingClient", "Reconnection", "RecordingClient", "wait_until_delivered"]

# The patterns that clients ask for, in turn; None is no filter.
PATTERNS: Final[tuple[list[str] | None, ...]] = (
    None,
    None,
    ["event"],
    ["alert.*"],
    ["camera.offline", "worker.*"],
    ["detection.*", "event.created"],
    ["*status*"],
    ["summary.updated", "scene?changed"],
)

# The errors of a connection attempt to a replica that is down, shutting down or full.
_REFUSED = (OSError, WebSocketException, TimeoutError, EOFError)


class RecordingClient:
    """A client that records every frame, and resumes from its own position when it connects to another replica.

    It connects with its patterns, its position and the parameters of `query`; `options` are those of `Client.open`.
    """

    def __init__(
        self, name: str, patterns: Sequence[str] | None = None, *, query: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.record = ClientRecord(name, patterns)
        self.connection: Client | None = None
        self.query = dict(query or {})
        self._options = options
        self._reader = Reader()
        self._read = 0

    @property
    def open_connection(self) -> Client:
        """The connection; fails if there is none."""
        assert self.connection is not None
        return self.connection

    @property
    def frames(self) -> list[Frame]:
        """Every frame received so far, on all connections."""
        return [frame for connection in self.record.connections for frame in connection.frames]

    async def connect(self, replica: Replica) -> Client:
        """Connect, resuming from the current position if there is one; returns the connection."""
        since = self._reader.sequence
        epoch = self._reader.epoch if since is not None else ""
        query: dict[str, Any] = dict(self.query)
        if self.record.patterns is not None:
            query["events"] = ",".join(self.record.patterns)
        if since is not None:
            query |= {"since": since, "epoch": epoch}
        self.connection = await Client.open(replica.websocket(**query), **self._options)
        self.record.connections.append(Connection(replica.url, since, epoch, self.connection.frames))
        self._reader.connect(since)
        self._read = 0
        return self.connection

    async def leave(self, *, politely: bool = False) -> None:
        """End the connection; only with `politely` there is a closing handshake."""
        if self.connection is not None:
            await (self.connection.leave() if politely else self.connection.vanish())
            self.catch_up()
            self.connection = None

    def catch_up(self) -> None:
        """Advance the position over the frames that have arrived."""
        frames = self.open_connection.frames
        for frame in frames[self._read :]:
            self._reader.take(frame)
        self._read = len(frames)

    def stands_at(self, epoch: str, sequence: int) -> bool:
        """True if its position is in this epoch, at `sequence` or later."""
        if self.connection is not None:
            self.catch_up()
        return self._reader.epoch == epoch and (self._reader.sequence or 0) >= sequence

    async def reaches(self, epoch: str, sequence: int) -> None:
        """Wait until its position is at `sequence`; fails if the connection ends first."""
        await self.open_connection.until(lambda: self.stands_at(epoch, sequence) or None)


class Reconnection(NamedTuple):
    """A new connection: when it was made (event-loop time), and the close code of the one before."""

    at: float
    code: int | None


class ReconnectingClient(RecordingClient):
    """A recording client that connects to a random replica at once whenever its connection ends."""

    def __init__(self, name: str, patterns: Sequence[str] | None, rng: random.Random, **options: Any) -> None:
        super().__init__(name, patterns, **options)
        self.reconnections: list[Reconnection] = []
        self._rng = rng

    async def stay(self, replicas: Sequence[Replica], stop: asyncio.Event) -> None:
        """Stay connected, to one replica or another, until `stop` is set."""
        ended: int | None = None
        while not stop.is_set():
            try:
                async with asyncio.timeout(PATIENCE):
                    client = await self.connect(self._rng.choice(replicas))
            except _REFUSED:
                await asyncio.sleep(0.05)
                continue
            self.reconnections.append(Reconnection(asyncio.get_running_loop().time(), ended))
            await _closed_or_stopped(client, stop)
            ended, _ = client.close
            await self.leave()


async def wait_until_delivered(
    history: History, epoch: str, recorders: Sequence[RecordingClient], seconds: float = PATIENCE
) -> None:
    """Wait until the position of every recorder covers all events accepted in this epoch."""
    last = history.last(epoch)
    waiting = list(recorders)
    try:
        async with asyncio.timeout(seconds):
            while waiting := [recorder for recorder in waiting if not recorder.stands_at(epoch, last)]:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not at {last} of {epoch}: {[recorder.record.name for recorder in waiting]}") from None


async def _closed_or_stopped(client: Client, stop: asyncio.Event) -> None:
    """Wait until the connection ends or `stop` is set."""
    tasks = [asyncio.ensure_future(client.socket.wait_closed()), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

"""Those who log for the history checker: producers that post, and witnesses that connect, vanish and resume."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import httpx

from handlers.openapi.examples import EXAMPLES
from tests.system.client import Client
from tests.system.history import MARKS, Connection, History, Reader, Witnessed
from tests.system.replica import Replica

__all__ = ["Producer", "Witness", "marked", "route_of"]

Data = dict[str, Any]

KINDS: Final = tuple(EXAMPLES)


def route_of(kind: str) -> str:
    """The path on which messages of a type are posted (section 2 of the contract)."""
    if kind.startswith("alert_"):
        return f"/broadcast/alert/{kind.removeprefix('alert_')}"
    return f"/broadcast/{kind.replace('.', '/').replace('_', '-')}"


def marked(kind: str, mark: str) -> Data:
    """Data of this type that no other message has."""
    data: Data = copy.deepcopy(EXAMPLES[kind]["data"])
    if kind == "summary_update":
        data["hourly"]["content"] = mark
    else:
        data[MARKS[kind]] = mark
    return data


class Producer:
    """Posts marked messages and logs what it was answered; `name` is the beginning of its marks."""

    def __init__(self, history: History, name: str) -> None:
        self._history = history
        self._marks: Iterator[str] = (f"{name}-{number}" for number in itertools.count(1))

    async def publish(self, http: httpx.AsyncClient, kind: str, **headers: str) -> int | None:
        """Publish one message; its number, or None if its fate is not known."""
        data = marked(kind, next(self._marks))
        try:
            answer = await http.post(route_of(kind), json=data, headers=headers)
        except httpx.TransportError:
            self._history.unknown(kind, data)
            return None
        if answer.status_code == 202:
            receipt = answer.json()
            self._history.receipt(kind, data, receipt)
            return int(receipt["sequence"])
        assert answer.status_code == 503, answer.text
        self._history.unknown(kind, data)
        return None

    async def publish_batch(self, http: httpx.AsyncClient, kinds: Sequence[str]) -> list[int]:
        """Publish several at once; their numbers, none if their fate is not known."""
        batch = [(kind, marked(kind, next(self._marks))) for kind in kinds]
        try:
            answer = await http.post("/broadcast/batch", json=[{"type": kind, "data": data} for kind, data in batch])
        except httpx.TransportError:
            answer = httpx.Response(503)
        if answer.status_code != 202:
            assert answer.status_code == 503, answer.text
            for kind, data in batch:
                self._history.unknown(kind, data)
            return []
        receipts = answer.json()["receipts"]
        for (kind, data), receipt in zip(batch, receipts, strict=True):
            self._history.receipt(kind, data, receipt)
        return [receipt["sequence"] for receipt in receipts]


class Witness:
    """A client that resumes by itself wherever it is sent, and keeps everything that it saw.

    It connects with its patterns, `since` and `epoch`, and what `query` has more; `options` are those of `Client.open`.
    """

    def __init__(
        self, name: str, patterns: Sequence[str] | None = None, *, query: Data | None = None, **options: Any
    ) -> None:
        self.seen = Witnessed(name, patterns)
        self.client: Client | None = None
        self.query = dict(query or {})
        self._options = options
        self._reader = Reader()
        self._read = 0

    async def connect(self, replica: Replica) -> Client:
        """Connect, resuming from where it stands if it stands anywhere; returns the open connection."""
        since = self._reader.sequence
        epoch = self._reader.epoch if since is not None else ""
        query: Data = dict(self.query)
        if self.seen.patterns is not None:
            query["events"] = ",".join(self.seen.patterns)
        if since is not None:
            query |= {"since": since, "epoch": epoch}
        self.client = await Client.open(replica.websocket(**query), **self._options)
        self.seen.connections.append(Connection(replica.url, since, epoch, self.client.frames))
        self._reader.connect(since)
        self._read = 0
        return self.client

    async def leave(self, *, politely: bool = False) -> None:
        """End the connection, with a closing handshake or without a word."""
        if self.client is not None:
            await (self.client.leave() if politely else self.client.vanish())
            self.catch_up()
            self.client = None

    def catch_up(self) -> None:
        """Read what has come."""
        assert self.client is not None
        for frame in self.client.frames[self._read :]:
            self._reader.take(frame)
        self._read = len(self.client.frames)

    def stands_at(self, epoch: str, sequence: int) -> bool:
        """Whether its place is there or beyond."""
        if self.client is not None:
            self.catch_up()
        return self._reader.epoch == epoch and (self._reader.sequence or 0) >= sequence

    async def reaches(self, epoch: str, sequence: int) -> None:
        """Wait until it is there; the connection must not end before."""
        assert self.client is not None
        await self.client.until(lambda: self.stands_at(epoch, sequence) or None)

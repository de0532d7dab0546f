"""Producers that log every publish for the history checker: a plain one, one that retries, one for large volumes."""

import asyncio
import contextlib
import copy
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

import httpx

from handlers.openapi.examples import EXAMPLES
from tests.history import MARKS, History
from tests.system.client import PATIENCE
from tests.system.replica import Replica

__all__ = ["KINDS", "BulkProducer", "Producer", "RetryingProducer", "marked", "route_of"]

Data = dict[str, Any]

KINDS: Final = tuple(EXAMPLES)


def route_of(kind: str) -> str:
    """Return the path to which messages of this type are posted."""
    if kind.startswith("alert_"):
        return f"/broadcast/alert/{kind.removeprefix('alert_')}"
    return f"/broadcast/{kind.replace('.', '/').replace('_', '-')}"


def marked(kind: str, mark: str) -> Data:
    """Return data of this type that contains `mark`, which must be unique to the message."""
    data: Data = copy.deepcopy(EXAMPLES[kind]["data"])
    if kind == "summary_update":
        data["hourly"]["content"] = mark
    else:
        data[MARKS[kind]] = mark
    return data


class Producer:
    """Posts marked messages and logs each receipt or failure; its marks start with `name`."""

    def __init__(self, history: History, name: str) -> None:
        self._history = history
        self._marks: Iterator[str] = (f"{name}-{number}" for number in itertools.count(1))

    async def publish(self, http: httpx.AsyncClient, kind: str, *, reasoning: str = "", **headers: str) -> int | None:
        """Publish one message; returns its sequence number, or None if the outcome is unknown.

        Only an event may have another `reasoning`.
        """
        data = marked(kind, next(self._marks))
        if reasoning:
            data["reasoning"] = reasoning
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
        """Publish a batch; returns the sequence numbers, or an empty list if the outcome is unknown."""
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


class RetryingProducer:
    """Posts one message after another, and retries each, under its idempotency key, until a replica accepts it."""

    def __init__(self, history: History, name: str, replicas: Sequence[Replica], rng: random.Random) -> None:
        self._history = history
        self._name = name
        self._replicas = replicas
        self._rng = rng
        self.count = 0
        self.retries = 0
        self.idle = True

    async def publish(self, pause: float, stop: asyncio.Event) -> None:
        """Publish every `pause` seconds or so until `stop` is set; the message in flight is retried until accepted."""
        async with httpx.AsyncClient(verify=False, trust_env=False, timeout=PATIENCE / 4) as http:
            while not stop.is_set():
                await self.publish_one(http)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause * self._rng.uniform(0.5, 1.5)):
                        await stop.wait()

    async def publish_one(self, http: httpx.AsyncClient, *, size: int = 0) -> None:
        """Publish a message of a random type, or an event with `size` bytes of text, to a random replica."""
        self.count += 1
        kind, mark = "event" if size else self._rng.choice(KINDS), f"{self._name}-{self.count}"
        data = marked(kind, mark)
        if size:
            data["reasoning"] = "." * size
        # logged first: clients may receive it long before the answer arrives
        self._history.unknown(kind, data)
        self.idle = False
        async with asyncio.timeout(6 * PATIENCE):
            while (receipt := await self._post(http, kind, data, mark)) is None:
                self.retries += 1
                await asyncio.sleep(0.02)
        self._history.receipt(kind, data, receipt)
        self.idle = True

    async def _post(self, http: httpx.AsyncClient, kind: str, data: object, key: str) -> dict[str, Any] | None:
        url = self._rng.choice(self._replicas).url + route_of(kind)
        try:
            answer = await http.post(url, json=data, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            return None
        assert answer.status_code in (202, 503), answer.text
        return answer.json() if answer.status_code == 202 else None


class BulkProducer:
    """Publishes large messages in batches and logs the receipts; its marks start with `name`."""

    def __init__(self, history: History, replica: Replica, name: str = "bulk") -> None:
        self._history = history
        self._replica = replica
        self._name = name
        self._count = 0
        self.epoch = ""
        self.last = 0

    async def publish(self, size: int, message: int = 16_000, kinds: Sequence[str] = ("event", "alert_deleted")) -> int:
        """Publish about `size` bytes, in messages of about `message` bytes; returns the last sequence number."""
        async with self._replica.http() as http:
            while size > 0:
                batch: list[tuple[str, dict[str, object]]] = []
                while size > 0 and len(batch) * message < 600_000:
                    self._count += 1
                    kind = kinds[self._count % len(kinds)]
                    data = marked(kind, f"{self._name}-{self._count}")
                    text = random.Random(self._count).randbytes(message // 2).hex()
                    data["reason" if kind == "alert_deleted" else "reasoning"] = text
                    batch.append((kind, data))
                    size -= message
                await self._publish(http, batch)
        return self.last

    async def _publish(self, http: httpx.AsyncClient, batch: list[tuple[str, dict[str, object]]]) -> None:
        answer = await http.post("/broadcast/batch", json=[{"type": kind, "data": data} for kind, data in batch])
        assert answer.status_code == 202, answer.text
        for (kind, data), receipt in zip(batch, answer.json()["receipts"], strict=True):
            self._history.receipt(kind, data, receipt)
        self.epoch, self.last = receipt["epoch"], receipt["sequence"]

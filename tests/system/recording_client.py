"""A crowd for the long faults: producers that do not give up, and clients that always come back, to any replica."""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import httpx
from websockets.exceptions import WebSocketException

from tests.system.client import PATIENCE, Client
from tests.system.history import History
from tests.system.producers import KINDS, Witness, marked, route_of
from tests.system.replica import Replica

__all__ = ["FILTERS", "Persistent", "Return", "Wanderer", "settled"]

# What the clients of a crowd ask for, in turn.
FILTERS: Final[tuple[list[str] | None, ...]] = (
    None,
    None,
    ["event"],
    ["alert.*"],
    ["camera.offline", "worker.*"],
    ["detection.*", "event.created"],
    ["*status*"],
    ["summary.updated", "scene?changed"],
)

# What a client meets at a replica that is down, goes down, or lets nobody in any more.
_REFUSED = (OSError, WebSocketException, TimeoutError, EOFError)


class Persistent:
    """Posts one message after another, each under an idempotency key until somebody has accepted it."""

    def __init__(self, history: History, name: str, replicas: Sequence[Replica], rng: random.Random) -> None:
        self._history = history
        self._name = name
        self._replicas = replicas
        self._rng = rng
        self.count = 0
        self.retries = 0
        self.idle = True

    async def publish(self, pause: float, stop: asyncio.Event) -> None:
        """Publish with pauses of about so many seconds until told to stop; what has begun is brought to its end."""
        async with httpx.AsyncClient(verify=False, trust_env=False, timeout=PATIENCE / 4) as http:
            while not stop.is_set():
                await self.publish_one(http)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause * self._rng.uniform(0.5, 1.5)):
                        await stop.wait()

    async def publish_one(self, http: httpx.AsyncClient, *, size: int = 0) -> None:
        """Publish a message of any kind, or an event with `size` bytes of text, to whichever replica takes it."""
        self.count += 1
        kind, mark = "event" if size else self._rng.choice(KINDS), f"{self._name}-{self.count}"
        data = marked(kind, mark)
        if size:
            data["reasoning"] = "." * size
        # noted first: clients may see it long before there is an answer
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


class Return(NamedTuple):
    """When a client was back (the loop's clock), and the code with which it had been sent away."""

    at: float
    code: int | None


class Wanderer(Witness):
    """A witness that goes back to any replica at once, whenever its connection ends."""

    def __init__(self, name: str, patterns: Sequence[str] | None, rng: random.Random, **options: Any) -> None:
        super().__init__(name, patterns, **options)
        self.returns: list[Return] = []
        self._rng = rng

    async def stay(self, replicas: Sequence[Replica], stop: asyncio.Event) -> None:
        """Stay connected to one or another until told to stop."""
        ended: int | None = None
        while not stop.is_set():
            try:
                async with asyncio.timeout(PATIENCE):
                    client = await self.connect(self._rng.choice(replicas))
            except _REFUSED:
                await asyncio.sleep(0.05)
                continue
            self.returns.append(Return(asyncio.get_running_loop().time(), ended))
            await _either(client, stop)
            ended, _ = client.close
            await self.leave()


async def settled(history: History, epoch: str, witnesses: Sequence[Witness], seconds: float = PATIENCE) -> None:
    """Wait until every witness has all that was accepted in this epoch."""
    last = history.last(epoch)
    waiting = list(witnesses)
    try:
        async with asyncio.timeout(seconds):
            while waiting := [witness for witness in waiting if not witness.stands_at(epoch, last)]:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not at {last} of {epoch}: {[witness.seen.name for witness in waiting]}") from None


async def _either(client: Client, stop: asyncio.Event) -> None:
    """Wait for the end of a connection, or until told to stop."""
    tasks = [asyncio.ensure_future(client.socket.wait_closed()), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

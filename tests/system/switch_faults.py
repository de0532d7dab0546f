"""Faults between replicas behind a switch and streams of client.js, and the judgement on what these were told."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from tests.history import violations
from tests.javascript import Listener
from tests.system.fault_environment import FaultEnvironment
from tests.system.replica import PATIENCE
from tests.system.switch import Switch
from tests.waiting import eventually

__all__ = ["SETTINGS", "TOLERATED", "Faults"]

HISTORY_SIZE: Final = 300

SETTINGS: Final[dict[str, float]] = {
    "history_size": HISTORY_SIZE,
    "message_buffer_size": 20,
    "drain_seconds": 0.5,
    "websocket_max_age_seconds": 6,
    "websocket_ping_interval_seconds": 0.4,
}
"""Settings of the replicas: all that a stream waits for comes soon."""

TOLERATED: Final = r" (ERROR|CRITICAL) kernel\.(resilience\.link|listening\.\w+): "
"""Lines that the replicas may log when Redis loses its data."""


class Command(Protocol):
    """Runs a command of javascript.mjs."""

    async def __call__(self, do: str, **values: object) -> None: ...


class Faults:
    """The faults, each of which ends when it is repaired; `listeners` run in the program that takes `command`."""

    def __init__(
        self, env: FaultEnvironment, switch: Switch, rng: random.Random, command: Command, listeners: Sequence[Listener]
    ) -> None:
        self._env = env
        self._switch = switch
        self._rng = rng
        self._command = command
        self._listeners = listeners
        self.kinds: list[Callable[[], Awaitable[None]]] = [
            self.kill,
            self.drain,
            self.cut,
            self.freeze,
            self.refuse,
            self.outlast_the_history,
            self.flush,
            self.read_slowly,
        ]
        self.losses = (self.outlast_the_history, self.flush)

    async def kill(self) -> None:
        """Kill a replica and start it again."""
        replica = self._rng.choice(self._env.replicas)
        replica.kill()
        await asyncio.to_thread(replica.start)

    async def drain(self) -> None:
        """End a replica as an operator does, and start it again."""
        replica = self._rng.choice(self._env.replicas)
        await asyncio.to_thread(replica.stop, tolerate=self._env.tolerate)
        await asyncio.to_thread(replica.start)

    async def cut(self) -> None:
        """Cut all lines, several times, so that replays are cut too."""
        for _ in range(self._rng.randint(1, 5)):
            self._switch.cut()
            await asyncio.sleep(self._rng.uniform(0, 0.3))

    async def freeze(self) -> None:
        """Let no data pass on the lines that are open, until a client has given its own up."""
        lines = self._switch.lines
        self._switch.freeze()
        # a client that has not seen two heartbeats on one line waits for 75 s
        await eventually(lambda: self._switch.lines > lines, 4 * PATIENCE)

    async def refuse(self) -> None:
        """Cut all lines, and refuse others for a while."""
        self._switch.refusing = True
        self._switch.cut()
        await asyncio.sleep(self._rng.uniform(0.2, 1))
        self._switch.refusing = False

    async def outlast_the_history(self) -> None:
        """Let nobody be connected until the history no longer has what they missed."""
        self._switch.refusing = True
        self._switch.cut()
        for _ in range(3):
            await self._env.publish_batch(self._rng.choice(self._env.replicas), HISTORY_SIZE)
        self._switch.refusing = False

    async def flush(self) -> None:
        """Let Redis lose everything, sometimes while nobody is connected."""
        self._switch.refusing = self._rng.random() < 0.5
        if self._switch.refusing:
            self._switch.cut()
        self._env.server.link.flushall()
        await asyncio.sleep(self._rng.uniform(0.1, 1))
        self._switch.refusing = False

    async def read_slowly(self) -> None:
        """Let an application take nothing for a while."""
        name = self._rng.choice(self._listeners).name
        await self._command("pause", name=name)
        await asyncio.sleep(self._rng.uniform(0.2, 1))
        await self._command("proceed", name=name)

    async def wait_until_live(self) -> None:
        """Wait until all streams are live and know the interval of the heartbeats."""
        for listener in self._listeners:
            await listener.becomes("live")
        await asyncio.sleep(4 * SETTINGS["websocket_ping_interval_seconds"])

    async def wait_until_told(self) -> None:
        """Wait until the positions of all streams cover everything that is accepted by now."""
        history = self._env.history
        epoch = list(history.accepted)[-1].epoch
        last = history.last(epoch)
        for listener in self._listeners:

            async def told(listener: Listener = listener) -> bool:
                await self._command("place", name=listener.name)
                place = listener.position
                return place is not None and place["epoch"] == epoch and place["sequence"] >= last

            try:
                await eventually(told, 2 * PATIENCE)
            except AssertionError:
                raise AssertionError(f"{listener.name} is at {listener.position}: {listener.statuses[-5:]}") from None

    def check(self) -> None:
        """Compare everything that the applications were told with everything that was published."""
        for listener in self._listeners:
            told = {name for frame in listener.frames for name in (frame["type"], *frame)}
            assert {"resync_ack", "gap_too_old", "epoch_changed"} <= told
        records = [listener.record() for listener in self._listeners]
        found = violations(self._env.history, records)
        assert not found, "\n".join(found)

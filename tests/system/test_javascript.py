"""The client for browsers under faults, in Node.js: the history checker judges what the application was told.

`JAVASCRIPT_SEEDS=1,2,3` runs these seeds instead of the one of the normal run, and `JAVASCRIPT_FAULTS` that many random
faults of each, after one of each kind.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from tests.history import History, violations
from tests.javascript import JavaScript, Listener
from tests.system.fault_environment import FaultEnvironment
from tests.system.replica import PATIENCE, ReplicaFactory
from tests.system.switch import Switch
from tests.waiting import eventually

SEEDS = [int(seed) for seed in os.environ.get("JAVASCRIPT_SEEDS", "1").split(",")]
FAULTS = int(os.environ.get("JAVASCRIPT_FAULTS", "0"))
HISTORY_SIZE = 300
SETTINGS = {
    "history_size": HISTORY_SIZE,
    "message_buffer_size": 20,
    "drain_seconds": 0.5,
    "websocket_max_age_seconds": 6,
    "websocket_ping_interval_seconds": 0.4,
}
PATTERNS = (None, ["alert.*", "camera.offline", "summary*"])
TRANSPORTS = ("websocket", "sse")


class Faults:
    """The faults, each of which ends when it is repaired."""

    def __init__(self, env: FaultEnvironment, switch: Switch, rng: random.Random, javascript: JavaScript) -> None:
        self._env = env
        self._switch = switch
        self._rng = rng
        self._javascript = javascript
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
        """Let no data pass on the lines that are open, until the clients have given them up."""
        lines = self._switch.lines
        self._switch.freeze()
        await eventually(lambda: self._switch.lines > lines, PATIENCE)

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
        name = self._rng.choice(list(self._javascript.listeners))
        self._javascript.command("pause", name=name)
        await asyncio.sleep(self._rng.uniform(0.2, 1))
        self._javascript.command("proceed", name=name)


@pytest.fixture
async def env(start: ReplicaFactory) -> AsyncIterator[FaultEnvironment]:
    """Two replicas whose Redis may be emptied."""
    async with FaultEnvironment(start) as env:
        env.tolerate = " CRITICAL kernel.resilience.link: | (ERROR|WARNING|CRITICAL) kernel.listening"
        await env.start_replicas(2, **SETTINGS)
        yield env


async def wait_until_told(
    javascript: JavaScript, history: History, asked: Sequence[tuple[Listener, Sequence[str] | None]]
) -> None:
    """Wait until the positions of all streams cover everything that is accepted by now."""
    epoch = list(history.accepted)[-1].epoch
    last = history.last(epoch)
    for listener, _ in asked:

        def told(listener: Listener = listener) -> bool:
            javascript.command("place", name=listener.name)
            place = listener.position
            assert place is not None
            return place["epoch"] == epoch and place["sequence"] >= last

        try:
            await eventually(told, 2 * PATIENCE)
        except AssertionError:
            raise AssertionError(f"{listener.name} is at {listener.position}: {listener.statuses[-5:]}") from None


@pytest.mark.parametrize("seed", SEEDS)
async def test_faults(env: FaultEnvironment, seed: int) -> None:
    """Whatever ends its connections, the application gets every event once and in order, or is told of the loss."""
    rng = random.Random(seed)
    async with Switch(env.replicas, rng) as switch:
        with JavaScript() as javascript:
            asked: list[tuple[Listener, Any]] = []
            for transport in TRANSPORTS:
                for patterns in PATTERNS:
                    options = {"transport": transport} | ({"events": patterns} if patterns else {})
                    asked.append((javascript.connect(switch.url, options=options), patterns))
            for listener, _ in asked:
                await listener.becomes("live")
            faults = Faults(env, switch, rng, javascript)
            kinds = rng.sample(faults.kinds, len(faults.kinds)) + rng.choices(faults.kinds, k=FAULTS)
            async with env.load() as producers:
                for kind in kinds:
                    await kind()
                    await env.wait_until_accepted(producers, rng.randint(1, 10))
                    if kind in faults.losses or rng.random() < 0.5:  # else the next fault comes amid the repair
                        await wait_until_told(javascript, env.history, asked)
            await env.wait_until_healthy()
            async with env.replicas[0].http() as http:
                await producers[0].publish_one(http)
            await wait_until_told(javascript, env.history, asked)
    print(f"seed {seed}: {len(env.history.accepted)} events, {switch.lines} lines")
    for listener, _ in asked:
        told = {name for frame in listener.frames for name in (frame["type"], *frame)}
        assert {"resync_ack", "gap_too_old", "epoch_changed"} <= told
    assert violations(env.history, [listener.record(patterns) for listener, patterns in asked]) == []

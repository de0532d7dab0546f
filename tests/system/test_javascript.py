"""The client for browsers under faults, in Node.js: the history checker judges what the application was told.

`JAVASCRIPT_SEEDS=1,2,3` runs these seeds instead of the normal one, and `JAVASCRIPT_FAULTS=20` as many random
faults after one of each kind.
"""

import os
import random

import pytest

from tests.javascript import JavaScript
from tests.system.fault_environment import FaultEnvironment
from tests.system.replica import ReplicaFactory
from tests.system.switch import Switch
from tests.system.switch_faults import SETTINGS, TOLERATED, Faults

SEEDS = [int(seed) for seed in os.environ.get("JAVASCRIPT_SEEDS", "1").split(",")]
FAULTS = int(os.environ.get("JAVASCRIPT_FAULTS", "0"))


@pytest.mark.parametrize("seed", SEEDS)
async def test_faults(start: ReplicaFactory, seed: int) -> None:
    """Whatever ends its connections, the application gets every event once and in order, or is told of the loss."""
    rng = random.Random(seed)
    with JavaScript() as javascript:
        async with FaultEnvironment(start) as env, Switch(env.replicas, rng) as switch:
            env.tolerate = TOLERATED
            await env.start_replicas(2, **SETTINGS)
            listeners = [
                javascript.connect(switch.url, options={"transport": transport}, patterns=patterns)
                for transport in ("websocket", "sse")
                for patterns in (None, ["alert.*", "camera.offline", "summary*"])
            ]

            async def command(do: str, **values: object) -> None:
                javascript.command(do, **values)

            faults = Faults(env, switch, rng, command, listeners)
            await faults.wait_until_live()
            kinds = rng.sample(faults.kinds, len(faults.kinds)) + rng.choices(faults.kinds, k=FAULTS)
            async with env.load() as producers:
                for kind in kinds:
                    await kind()
                    await env.wait_until_accepted(producers, rng.randint(1, 10))
                    if kind in faults.losses or rng.random() < 0.5:  # else the next fault comes amid the repair
                        await faults.wait_until_told()
            await env.wait_until_healthy()
            async with env.replicas[0].http() as http:
                await producers[0].publish_one(http)
            await faults.wait_until_told()
            print(f"seed {seed}: {len(env.history.accepted)} events, {switch.lines} lines")
            faults.check()

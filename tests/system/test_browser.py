"""The client for browsers in Chromium: a page of another origin listens through faults, sleep and reloads."""

import random
from pathlib import Path

from tests.javascript import Listener
from tests.system.chromium import Page, open_page
from tests.system.fault_environment import FaultEnvironment
from tests.system.replica import PATIENCE, ReplicaFactory
from tests.system.switch import Switch
from tests.system.switch_faults import SETTINGS, TOLERATED, Faults
from tests.waiting import eventually

TRANSPORTS = ("websocket", "sse")


async def listen(page: Page, url: str) -> None:
    """Start the streams of a page, one for each transport, from the position that it has stored, if any."""
    for transport, listener in zip(TRANSPORTS, page.listeners.values(), strict=True):
        await page.command("connect", **listener.connection(url, transport=transport, resume="session"))


async def test_page(start: ReplicaFactory, tmp_path: Path) -> None:
    """Through faults, sleep and reloads, a page gets every event once and in order, or is told of the loss."""
    rng = random.Random(1)
    async with FaultEnvironment(start) as env, Switch(env.replicas, rng) as switch:
        env.tolerate = TOLERATED
        await env.start_replicas(2, **SETTINGS)
        async with open_page(env.replicas[0].url, tmp_path) as page:
            # the second has patterns, so that it is at other positions
            listeners = [Listener("websocket"), Listener("sse", ["alert.*", "camera.offline"])]
            page.listeners = {listener.name: listener for listener in listeners}
            await listen(page, switch.url)
            faults = Faults(env, switch, rng, page.command, listeners)
            await faults.wait_until_live()

            async def sleep() -> None:
                """Freeze the page, and cut its lines meanwhile."""
                await page.devtools("Page.setWebLifecycleState", state="frozen")
                await faults.cut()
                await env.wait_until_accepted(producers)
                await page.devtools("Page.setWebLifecycleState", state="active")

            async def lose_the_network() -> None:
                """Freeze the lines; when the network is back, the streams connect again at once."""
                for listener in listeners:
                    await listener.becomes("live")
                before = [len(listener.statuses) for listener in listeners]
                switch.freeze()
                # DevTools can take the network away, but after that Chromium goes on refusing fetches.
                await page.evaluate("dispatchEvent(new Event('online'))")
                for listener, count in zip(listeners, before, strict=True):
                    await eventually(lambda listener=listener, count=count: "live" in listener.states[count:], PATIENCE)
                    reasons = [status["reason"] for status in listener.statuses[count:]]
                    assert not [reason for reason in reasons if "heartbeats" in reason]

            async def reload() -> None:
                """Load the page again."""
                await page.load("Page.reload")
                await listen(page, switch.url)

            async with env.load() as producers:
                for fault in (sleep, lose_the_network, reload, *faults.kinds, reload):
                    await fault()
                    await env.wait_until_accepted(producers, 5)
                    await faults.wait_until_told()
            await env.wait_until_healthy()
            await faults.wait_until_told()
            faults.check()

"""Requests for position checks: when a check is due, and which check answers which request."""

import asyncio

from kernel.log.check_requests import CheckRequests
from kernel.resilience.circuit import CircuitState


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_request_ends_the_wait() -> None:
    """The position check sleeps for its interval, or until a check is requested."""
    checks = CheckRequests()
    await checks.wait(0.001)
    waiting = asyncio.create_task(checks.wait(60))
    await settle()
    assert not waiting.done()
    checks.request()
    async with asyncio.timeout(5):
        await waiting


async def test_a_change_of_the_circuit_ends_the_wait() -> None:
    """The position check does not sleep through a circuit that opens or closes."""
    checks = CheckRequests()
    checks.circuit_changed(CircuitState.OPEN)
    async with asyncio.timeout(5):
        await checks.wait(60)


async def test_a_check_under_way_does_not_answer() -> None:
    """A request that is made during a check is answered only by the next one."""
    checks = CheckRequests()
    assert not checks.start()
    late = asyncio.create_task(checks.completed())
    await settle()
    checks.succeed()
    await settle()
    assert not late.done()
    assert checks.start()
    checks.succeed()
    async with asyncio.timeout(5):
        await late


async def test_a_failed_check_is_repeated_at_once() -> None:
    """A check that fails answers no request; the next one is due at once and answers all of them."""
    checks = CheckRequests()
    waiting = [asyncio.create_task(checks.completed()) for _ in range(2)]
    await settle()
    assert checks.start()
    checks.fail()
    waiting.append(asyncio.create_task(checks.completed()))
    async with asyncio.timeout(5):
        await checks.wait(60)
    await settle()
    assert not any(task.done() for task in waiting)
    assert checks.start()
    checks.succeed()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_nobody_waits_any_more() -> None:
    """Cancelled requests are forgotten: they make no check due, and a successful check ignores them."""
    checks = CheckRequests()
    gone, staying = (asyncio.create_task(checks.completed()) for _ in range(2))
    await settle()
    assert checks.start()
    gone.cancel()
    await settle()
    checks.succeed()
    async with asyncio.timeout(5):
        await staying
    given_up = asyncio.create_task(checks.completed())
    await settle()
    given_up.cancel()
    await settle()
    assert not checks.start()

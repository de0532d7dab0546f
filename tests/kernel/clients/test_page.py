"""Pages: what a poll gets, and when."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import pytest

from kernel.broadcaster import EventBroadcaster
from kernel.clients import EVERYTHING, PAGE_ENCODING, Client, Page, PageResult, Patterns, Resume
from kernel.clients.client import ClientState
from kernel.clients.close_reasons import NORMAL
from kernel.position import Position
from tests.fakes import FakeRedis
from tests.kernel.replicas import fill, replica
from tests.virtual_time import eventually

E1, E2 = "epoch-1", "epoch-2"


@asynccontextmanager
async def polling(
    broadcaster: EventBroadcaster,
    since: int,
    epoch: str | None = None,
    *,
    patterns: Patterns = EVERYTHING,
    page: Page | None = None,
) -> AsyncIterator["Poll"]:
    """A poll that is connected while the context lasts."""
    page = page or Page()
    client = broadcaster.connect(page, PAGE_ENCODING, patterns=patterns, resume=Resume("events", since, epoch))
    try:
        yield Poll(page, client, lambda: page.result(client))
    finally:
        broadcaster.disconnect(client)


class Poll(NamedTuple):
    """A poll; `result` is what it is answered now."""

    page: Page
    client: Client
    result: Callable[[], PageResult | None]

    async def answer(self, seconds: float = 5.0) -> PageResult:
        """Wait until the page is complete."""
        async with asyncio.timeout(seconds):
            await self.page.completed()
        result = self.result()
        assert result is not None
        return result


def numbers(result: PageResult) -> Sequence[object]:
    """The numbers of the events of a page, and its gaps."""
    decoded = [msgspec.json.decode(event) for event in result.events]
    assert not any("replay" in frame for frame in decoded)
    return [frame.get("sequence", (frame.get("from"), frame.get("to"))) for frame in decoded]


@pytest.fixture
def redis() -> FakeRedis:
    """A Redis with 250 events, of which a replica keeps the newest 20 in memory."""
    redis = FakeRedis()
    fill(redis, 250)
    return redis


@pytest.mark.parametrize("since", [0, 100, 240])
async def test_replay(redis: FakeRedis, since: int) -> None:
    """A poll gets all events after its position at once, as when live, from the history or from memory."""
    async with replica(redis) as broadcaster, polling(broadcaster, since, E1) as poll:
        result = await poll.answer()
        assert numbers(result) == list(range(since + 1, 251))
        assert (result.position, result.more, result.verdict.recovered) == (Position(E1, 250), False, True)


async def test_pages(redis: FakeRedis) -> None:
    """A page that is full says so, and the next one continues after its last event."""
    async with replica(redis) as broadcaster:
        place, seen = 0, []
        for more in (True, True, False):
            async with polling(broadcaster, place, E1, page=Page(most_events=100)) as poll:
                result = await poll.answer()
                assert result.more is more
                seen += numbers(result)
                place = result.position.sequence
        assert seen == list(range(1, 251))


async def test_most_bytes(redis: FakeRedis) -> None:
    """A page is bounded by bytes too; an event that is larger is alone on its page."""
    async with replica(redis) as broadcaster, polling(broadcaster, 200, E1, page=Page(most_bytes=10)) as poll:
        result = await poll.answer()
        assert (numbers(result), result.position, result.more) == ([201], Position(E1, 201), True)


async def test_wait_for_the_next_event(redis: FakeRedis) -> None:
    """A poll at the newest event is answered as soon as one comes that matches."""
    async with replica(redis) as broadcaster, polling(broadcaster, 250, E1, patterns=Patterns.of(["event"])) as poll:
        fill(redis, 2, type="alert_deleted")
        fill(redis, 1)
        result = await poll.answer()
        assert (numbers(result), result.position) == ([253], Position(E1, 253))


async def test_expired(redis: FakeRedis) -> None:
    """A poll that has waited long enough gets an empty page; its position passes what did not match."""
    async with replica(redis) as broadcaster, polling(broadcaster, 250, E1, patterns=Patterns.of(["x"])) as poll:
        fill(redis, 3)
        await eventually(lambda: broadcaster.sequence == 253)
        assert not poll.page.complete
        poll.page.expire()
        result = await poll.answer()
        assert (numbers(result), result.position, result.more) == ([], Position(E1, 253), False)


async def test_expired_before_the_replay(redis: FakeRedis) -> None:
    """A poll that expires during the replay is answered when that is over."""
    async with replica(redis) as broadcaster, polling(broadcaster, 0, E1) as poll:
        poll.page.expire()
        assert not poll.page.complete
        assert len(numbers(await poll.answer())) == 250


@pytest.mark.parametrize(("since", "epoch"), [(260, None), (5, E2)])
async def test_not_recovered(redis: FakeRedis, since: int, epoch: str | None) -> None:
    """A verdict other than "recovered" is answered at once, even if no event follows."""
    async with replica(redis) as broadcaster, polling(broadcaster, since, epoch, patterns=Patterns.of(["x"])) as poll:
        result = await poll.answer()
        assert (numbers(result), result.position) == ([], Position(E1, 250))
        assert (result.verdict.recovered, result.verdict.epoch_changed) == (False, epoch == E2)


async def test_trimmed(redis: FakeRedis) -> None:
    """If the oldest events are gone, the first page says so, even if the replay goes on after it."""
    redis.trim(100)
    async with replica(redis) as broadcaster, polling(broadcaster, 0, E1, page=Page(most_events=10)) as poll:
        result = await poll.answer()
        assert numbers(result) == list(range(151, 161))
        verdict = result.verdict
        assert (verdict.recovered, verdict.gap_too_old, verdict.oldest_available, result.more) == (
            False,
            True,
            151,
            True,
        )


async def test_gap(redis: FakeRedis) -> None:
    """A gap stands among the events, where the missing ones would be, and the page is not recovered."""
    del redis.history[200]
    async with replica(redis) as broadcaster, polling(broadcaster, 198, E1) as poll:
        result = await poll.answer()
        assert numbers(result) == [199, (200, 200), *range(201, 251)]
        verdict = result.verdict
        assert (verdict.recovered, verdict.gap_too_old, verdict.oldest_available) == (False, True, 201)


async def test_new_epoch(redis: FakeRedis) -> None:
    """A page ends before another epoch; the next poll finds it."""
    async with replica(redis) as broadcaster:
        async with polling(broadcaster, 250, E1) as poll:
            redis.flush()
            fill(redis, 3)
            result = await poll.answer()
            assert (numbers(result), result.position) == ([], Position(E1, 250))
            assert result.verdict.recovered
        await eventually(lambda: broadcaster.sequence == 3)
        async with polling(broadcaster, 250, E1) as poll:
            result = await poll.answer()
            assert (numbers(result), result.position) == ([1, 2, 3], Position(broadcaster.epoch, 3))
            assert (result.verdict.recovered, result.verdict.epoch_changed) == (False, True)


async def test_closed(redis: FakeRedis) -> None:
    """A page whose connection is closed, as by a drain, is answered with what it has, and takes nothing more."""
    async with replica(redis) as broadcaster, polling(broadcaster, 250, E1) as poll:
        await eventually(lambda: broadcaster.connections == 1)
        await asyncio.sleep(0.1)
        poll.page.close(NORMAL)
        fill(redis, 2)
        await eventually(lambda: broadcaster.sequence == 252)
        result = await poll.answer()
        assert (numbers(result), result.position) == ([], Position(E1, 250))


async def test_nothing_is_read_for_a_full_page() -> None:
    """A page that takes no more holds up its client's catch-up until the client is disconnected."""
    page = Page()
    await page.drained()
    page.close(NORMAL)
    assert page.blocked
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await page.drained()


async def test_redis_away(redis: FakeRedis) -> None:
    """There is no answer while Redis cannot be read and memory does not suffice."""
    async with replica(redis) as broadcaster:
        redis.down = True
        async with polling(broadcaster, 0, E1) as poll:
            await asyncio.sleep(0.1)
            poll.page.expire()
            assert poll.result() is None


async def test_cut_off_within_a_replay_that_matches_nothing(redis: FakeRedis) -> None:
    """A page that is closed while the history is still read passes what was read, so the next poll goes on from there.

    Without that, a poll whose patterns match little would never get through a long history.
    """
    async with replica(redis) as broadcaster:
        place, polls = 0, 0
        while place < 250:
            async with polling(broadcaster, place, E1, patterns=Patterns.of(["x"])) as poll:
                while poll.client.place.sequence <= place:
                    await asyncio.sleep(0)
                poll.page.close(NORMAL)
                result = await poll.answer()
                assert (numbers(result), result.verdict.recovered) == ([], True)
                assert result.more is (result.position.sequence < 250)
                assert result.position.sequence > place
                place = result.position.sequence
                polls += 1
        assert polls > 1


async def test_redis_away_before_anything_was_read(redis: FakeRedis) -> None:
    """A replay that has started but has read nothing is no answer either."""
    async with replica(redis) as broadcaster:
        redis.down = True
        async with polling(broadcaster, 100, E1) as poll:
            await asyncio.sleep(0.1)
            assert poll.client.replay is not None
            assert poll.client.replay.started
            poll.page.close(NORMAL)
            assert poll.result() is None


async def test_position_where_a_page_was_cut(redis: FakeRedis) -> None:
    """The position of a page that was closed is right before the first event that it did not take."""
    async with (
        replica(redis) as broadcaster,
        polling(broadcaster, 250, E1, patterns=Patterns.of(["alert_deleted"])) as poll,
    ):
        await eventually(lambda: poll.client.state is ClientState.LIVE)
        fill(redis, 3)
        await eventually(lambda: broadcaster.sequence == 253)
        poll.page.close(NORMAL)
        fill(redis, 1, type="alert_deleted")
        fill(redis, 1)
        await eventually(lambda: broadcaster.sequence == 255)
        result = await poll.answer()
        assert (numbers(result), result.position, result.more) == ([], Position(E1, 253), False)


async def test_position_before_a_gap_that_was_cut(redis: FakeRedis) -> None:
    """A page that is full before a gap ends before the gap's first number."""
    for number in (200, 201):
        del redis.history[number]
    async with replica(redis) as broadcaster, polling(broadcaster, 198, E1, page=Page(most_events=1)) as poll:
        result = await poll.answer()
        assert (numbers(result), result.position, result.more) == ([199], Position(E1, 199), True)

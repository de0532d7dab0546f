"""The log: judges announcements, and reads older events from Redis in pages that readers share."""

import asyncio
import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.errors import TransportUnavailable
from kernel.log import log as log_module
from kernel.log.envelope import Announcement
from kernel.log.frames import Frame
from kernel.log.log import Gone, Log, Moved
from kernel.position import NOWHERE, Position
from tests.fakes import FakeRedis, entry
from tests.kernel.replicas import PausableTransport, fill
from tests.virtual_time import eventually

E1 = "epoch-1"


def outline(frames: list[Frame]) -> list[str]:
    """Return the frames in short: `7` for an event, the type for a marker."""
    return [str(f.place.sequence) if f.entry else f"{f.message(replay=False)['type']} {f.place}" for f in frames]


def at(sequence: int, epoch: str = E1) -> Position:
    """Return a position."""
    return Position(epoch, sequence)


class World:
    """A Redis with some events, and a replica's log at the newest event with nothing in memory."""

    def __init__(self, events: int, *, data: str = "{}") -> None:
        self.redis = FakeRedis()
        fill(self.redis, events, data=data)
        self.transport = PausableTransport(self.redis)
        self.log = Log(self.transport, 10)
        self.log.ring.start(self.redis.place)

    @property
    def reads(self) -> int:
        """The number of reads from Redis."""
        return self.redis.calls.count("read")


# -- what has arrived


def offered(log: Log, *announcements: Announcement) -> tuple[list[int], list[Position]]:
    """Offer announcements, and return the numbers taken and the misfits."""
    frames, misfits, contradictions = log.offer(announcements)
    assert not contradictions
    return [frame.place.sequence for frame in frames], misfits


def events(*numbers: int, epoch: str = E1) -> Announcement:
    """Return an announcement of these events."""
    return Announcement(epoch, [entry(number) for number in numbers])


def test_what_follows_is_taken() -> None:
    """Events that follow the newest one are accepted, several announcements at a time."""
    log = World(3).log
    assert offered(log, events(4), events(5, 6), events(7)) == ([4, 5, 6, 7], [])
    assert log.place == at(3)


def test_what_is_known_is_passed_over() -> None:
    """An event that is there already, after a refill for example, is neither accepted again nor a misfit."""
    log = World(3).log
    assert offered(log, events(2), events(3, 4), events(4), events()) == ([4], [])


@pytest.mark.parametrize(
    ("announcement", "taken", "misfit"),
    [
        pytest.param(events(5, 6), [], at(6), id="a hole"),
        pytest.param(events(4, 6), [4], at(6), id="a hole within"),
        pytest.param(events(5, 4), [4], at(5), id="out of order"),
        pytest.param(events(4, epoch="other"), [], at(4, "other"), id="another epoch"),
        pytest.param(events(epoch="other"), [], at(0, "other"), id="a new epoch without events"),
        pytest.param(events(2**80), [], at(2**80), id="far beyond"),
    ],
)
def test_misfits(announcement: Announcement, taken: list[int], misfit: Position) -> None:
    """An event that does not follow is not delivered but reported as a misfit, because only Redis can explain it."""
    log = World(3).log
    assert offered(log, announcement) == (taken, [misfit])


def test_after_a_misfit_it_goes_on() -> None:
    """A misfit does not stop later events that do follow."""
    log = World(3).log
    assert offered(log, events(90), events(4), events(1, epoch="x"), events(5)) == ([4, 5], [at(90), at(1, "x")])


def test_before_redis_was_reached_nothing_follows() -> None:
    """Before Redis was reached there is no epoch, so every announcement is a misfit."""
    log = Log(PausableTransport(FakeRedis()), 10)
    assert offered(log, events(1)) == ([], [at(1)])


# -- announcements by identity


class Chain:
    """A log that has delivered the events 1 to 3 and knows their ids; the others come by announcements."""

    def __init__(self) -> None:
        self.log = World(0).log
        self.log.ring.start(at(0))
        self.log.append(Frame.of(E1, entry(number)) for number in (1, 2, 3))

    def offer(self, *announcements: Announcement) -> tuple[list[int], int, int]:
        """Offer announcements; return the numbers taken, and the numbers of misfits and of contradictions."""
        offered = self.log.offer(announcements)
        self.log.append(offered.frames)
        return [frame.place.sequence for frame in offered.frames], len(offered.misfits), offered.contradictions

    @property
    def verified(self) -> int:
        """The number of the last verified event."""
        return self.log.ring.fence.verified[0]


def chained(after: str | None, *numbers: int, mark: str = "") -> Announcement:
    """Return an announcement that names the event before its first; ids are `id-<number>` and the mark."""
    return Announcement(E1, [entry(number, id=f"id-{number}{mark}") for number in numbers], after)


def test_chained_announcements_are_taken() -> None:
    """An announcement is taken if the event before its first one is the one delivered last; its events are verified."""
    chain = Chain()
    assert chain.offer(chained("id-3", 4, 5), chained("id-5", 6)) == ([4, 5, 6], 0, 0)
    assert chain.offer(chained("id-2", 3, 4), chained("id-5", 6, 7)) == ([7], 0, 0)
    assert chain.verified == 7


@pytest.mark.parametrize(
    "contradiction",
    [
        pytest.param(chained("id-3x", 4), id="another event before it"),
        pytest.param(chained("", 4), id="the first of its epoch"),
        pytest.param(chained(None, 2, mark="x"), id="a known number"),
        pytest.param(chained("id-1", 2, 3, 4, mark="x"), id="known numbers and one that follows"),
    ],
)
def test_contradictions(contradiction: Announcement) -> None:
    """A known number with another id, or another event before the next one, proves a fork or a forgery."""
    chain = Chain()
    assert chain.offer(contradiction) == ([], 0, 1)
    # what would follow is not taken either, until a position check has succeeded
    assert chain.offer(chained("id-3", 4), chained("id-1", 2), chained("id-8", 9)) == ([], 2, 0)
    asked = chain.log.ring.fence
    assert asked.doubts == 1
    chain.log.ring.continuity.confirmed(asked)
    assert chain.offer(chained("id-3", 4)) == ([4], 0, 0)


def test_a_contradiction_within_what_has_arrived() -> None:
    """Announcements that arrive together are also compared with each other."""
    chain = Chain()
    assert chain.offer(chained("id-3", 4, 5), chained("id-3", 4), chained("id-3x", 4, mark="x")) == ([4, 5], 0, 1)


def test_events_that_are_not_chained() -> None:
    """An announcement that does not name the event before it is delivered and not verified."""
    chain = Chain()
    assert chain.offer(chained(None, 4, 5), chained("id-5", 6)) == ([4, 5, 6], 0, 0)
    assert chain.verified == 3
    chain.log.ring.continuity.confirmed(chain.log.ring.fence)
    assert chain.verified == 6


def test_after_an_unknown_event() -> None:
    """If the id at this replica's position is unknown, any event may follow, and is not verified."""
    chain = Chain()
    chain.log.append([Frame.gap(E1, 4, 9)])
    assert chain.offer(chained("id-9", 10), chained("id-10", 11)) == ([10, 11], 0, 0)
    assert chain.verified == 3
    # nothing is before the first event of an epoch
    log = World(0).log
    log.ring.start(at(0))
    offered = log.offer([chained(None, 1)])
    log.append(offered.frames)
    assert log.ring.fence.verified == (1, "id-1")


def test_known_numbers_that_cannot_be_compared() -> None:
    """A number that is no longer in memory, or that was a gap, contradicts nothing."""
    chain = Chain()
    chain.log.append([Frame.gap(E1, 4, 5), *(Frame.of(E1, entry(number)) for number in range(6, 16))])
    assert chain.offer(chained(None, 2, mark="x"), chained(None, 5, mark="x")) == ([], 0, 0)


# -- what comes after a place


async def test_after_in_memory() -> None:
    """Events in memory are not read from Redis."""
    world = World(3)
    world.log.append([Frame.of(E1, entry(number)) for number in (4, 5)])
    assert outline(await world.log.after(at(3))) == ["4", "5"]
    assert await world.log.after(at(5)) == []
    assert world.reads == 0


async def test_after_in_the_history() -> None:
    """Older events are read from Redis, in order, and never beyond the replica's position."""
    world = World(250)
    fill(world.redis, 50)
    assert outline(await world.log.after(at(30))) == [str(n) for n in range(31, 101)]
    assert outline(await world.log.after(at(100))) == [str(n) for n in range(101, 201)]
    assert outline(await world.log.after(at(249))) == ["250"]


async def test_after_another_epoch() -> None:
    """For a position in another epoch, the marker of the new epoch comes next."""
    world = World(3)
    (marker,) = await world.log.after(at(2, "old"))
    assert marker.place == at(0)
    assert marker.message(replay=False) == {"type": "epoch_changed", "epoch": E1}


async def test_after_nowhere() -> None:
    """A client that connected before Redis was reached continues from the replica's position."""
    world = World(3)
    (marker,) = await world.log.after(NOWHERE)
    assert marker.place == at(3)
    assert marker.message(replay=False) == {"type": "epoch_changed", "epoch": E1}


async def test_after_in_a_new_epoch_reads_its_events() -> None:
    """After the marker of a new epoch come all of its events, from the first."""
    world = World(30)
    assert outline(await world.log.after(at(0))) == [str(n) for n in range(1, 31)]


async def test_gone() -> None:
    """A position that the history no longer reaches raises Gone, with the oldest number that is kept."""
    world = World(50)
    world.redis.trim(20)
    with pytest.raises(Gone) as gone:
        await world.log.after(at(29))
    assert gone.value.oldest == 31
    assert outline(await world.log.after(at(30))) == [str(n) for n in range(31, 51)]


async def test_gone_altogether() -> None:
    """If the history is empty, everything up to the replica's position is gone."""
    world = World(50)
    fill(world.redis, 10)
    world.redis.lose_history()
    with pytest.raises(Gone) as gone:
        await world.log.after(at(29))
    assert gone.value.oldest == 51


async def test_gone_from_the_history_but_not_from_memory() -> None:
    """The oldest event that is kept may be in memory only."""
    world = World(50)
    world.log.ring.start(at(40))
    world.log.append([Frame.of(E1, entry(number)) for number in range(41, 51)])
    world.redis.lose_history()
    with pytest.raises(Gone) as gone:
        await world.log.after(at(29))
    assert gone.value.oldest == 41


async def test_gone_beyond_the_page() -> None:
    """A position is also gone if its whole page was trimmed."""
    world = World(350)
    world.redis.trim(50)
    with pytest.raises(Gone) as gone:
        await world.log.after(at(29))
    assert gone.value.oldest == 301


async def test_holes_become_gaps() -> None:
    """A gap stands exactly where the missing events would be, and names the first and the last of them."""
    world = World(150)
    for number in (7, 8, 50, 99, 100, 101, 150):
        del world.redis.history[number]
    frames = [*await world.log.after(at(5)), *await world.log.after(at(101))]
    gaps = [frame for frame in frames if frame.entry is None]
    assert [frame.message(replay=False) for frame in gaps] == [
        {"type": "gap", "from": a, "to": b} for a, b in ((7, 8), (50, 50), (99, 101), (150, 150))
    ]
    assert [frame.place.sequence for frame in gaps] == [8, 50, 101, 150]
    assert frames[1:3] == [gaps[0], frames[2]]
    assert frames[2].place.sequence == 9


@pytest.mark.parametrize("place", [3, 50, 100, 5_000_000])
async def test_a_hole_is_one_step(place: int) -> None:
    """A hole is one gap, however wide, up to the next event that is kept."""
    world = World(3)
    world.redis.place = at(10**12 + 6)
    fill(world.redis, 2)
    world.log.ring.start(world.redis.place)
    first, *rest = await world.log.after(at(place))
    assert first.message(replay=False) == {"type": "gap", "from": place + 1, "to": 10**12 + 6}
    assert rest == []
    assert outline(await world.log.after(first.place)) == [str(10**12 + 7), str(10**12 + 8)]
    assert world.reads == 2


async def test_a_place_within_a_hole() -> None:
    """A position within a hole gets a gap for the rest of it."""
    world = World(20)
    for number in (5, 6, 7):
        del world.redis.history[number]
    (gap, *_) = await world.log.after(at(5))
    assert gap.message(replay=False) == {"type": "gap", "from": 6, "to": 7}


async def test_a_place_within_a_gap_in_memory() -> None:
    """A client that got some of the missing events from another replica gets a gap only for the rest."""
    world = World(3)
    world.log.append([Frame.gap(E1, 4, 9), Frame.of(E1, entry(10))])
    for place in (3, 4, 8):
        gap, event = await world.log.after(at(place))
        assert gap.message(replay=False) == {"type": "gap", "from": place + 1, "to": 9}
        assert event.place == at(10)
    assert outline(await world.log.after(at(9))) == ["10"]


async def test_entries_that_nobody_wrote() -> None:
    """Invalid entries of the history are a hole."""
    world = World(3)
    world.redis.history[2] = ("x", b"no event")
    assert outline(await world.log.after(at(0)))[1].startswith("gap")


async def test_moved() -> None:
    """If the history has an epoch that this replica does not know yet, the read raises Moved."""
    world = World(50)
    world.redis.flush()
    fill(world.redis, 60)
    with pytest.raises(Moved):
        await world.log.after(at(10))
    world.redis.flush()
    with pytest.raises(Moved):
        await world.log.after(at(10))


async def test_behind() -> None:
    """If Redis is behind this replica, its events are not reported as lost."""
    world = World(150)
    world.redis.rewind(80)
    with pytest.raises(Moved):
        await world.log.after(at(10))
    assert world.reads == 1


async def test_another_past() -> None:
    """A history that has another event where this replica stands is not the past of its clients."""
    world = World(150)
    world.log.ring.start(at(149))
    world.log.append([Frame.of(E1, entry(150, id="another"))])
    with pytest.raises(Moved):
        await world.log.after(at(10))
    world.redis.trim(0)
    with pytest.raises(Gone):
        await world.log.after(at(10))


# -- pages


async def test_one_read_for_many_readers() -> None:
    """Clients that read the same page at the same time share one read and its frames."""
    world = World(150)
    world.transport.before["read"].clear()
    readers = [asyncio.create_task(world.log.after(at(number))) for number in range(100)]
    await eventually(lambda: world.transport.in_progress["read"] == 1)
    world.transport.before["read"].set()
    answers = await asyncio.gather(*readers)
    assert world.reads == 1
    assert all(answer[-1] is answers[0][-1] for answer in answers)
    assert [answer[0].place.sequence for answer in answers] == list(range(1, 101))


async def test_full_pages_are_kept() -> None:
    """A full page is kept for later readers, wherever they start in it; an unfinished one is read again."""
    world = World(150)
    first = await world.log.after(at(30))
    assert (await world.log.after(at(80)))[-1] is first[-1]
    assert world.reads == 1
    await world.log.after(at(120))
    await world.log.after(at(120))
    assert world.reads == 3


async def test_a_page_that_was_trimmed_meanwhile() -> None:
    """The events of a kept page are served although Redis has trimmed them."""
    world = World(350)
    await world.log.after(at(0))
    world.redis.trim(10)
    assert outline(await world.log.after(at(50)))[0] == "51"


async def test_a_page_whose_head_was_trimmed() -> None:
    """A page whose start had been trimmed serves only positions after that."""
    world = World(150)
    world.redis.trim(100)
    assert outline(await world.log.after(at(50)))[0] == "51"
    with pytest.raises(Gone) as gone:
        await world.log.after(at(49))
    assert gone.value.oldest == 51
    assert world.reads == 1


async def test_a_reader_that_gives_up() -> None:
    """A reader that is cancelled does not take the answer from the others."""
    world = World(150)
    world.transport.before["read"].clear()
    first, second = (asyncio.create_task(world.log.after(at(0))) for _ in range(2))
    await eventually(lambda: world.transport.in_progress["read"] == 1)
    first.cancel()
    await asyncio.wait([first])
    world.transport.before["read"].set()
    assert len(await second) == 100
    assert first.cancelled()
    assert world.reads == 1


async def test_a_read_that_fails() -> None:
    """A failed read fails for all its readers, and the next one reads again."""
    world = World(150)
    world.redis.fail()
    answers = await asyncio.gather(*(world.log.after(at(0)) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [TransportUnavailable] * 3
    assert len(await world.log.after(at(0))) == 100
    assert world.reads == 2


async def test_a_read_that_fails_after_its_readers_gave_up(caplog: pytest.LogCaptureFixture) -> None:
    """A read that fails when nobody waits for it any more is no error of the service."""
    world = World(150)
    world.transport.before["read"].clear()
    reader = asyncio.create_task(world.log.after(at(0)))
    await eventually(lambda: world.transport.in_progress["read"] == 1)
    reader.cancel()
    await asyncio.wait([reader])
    world.redis.fail()
    world.transport.before["read"].set()
    await eventually(lambda: world.transport.in_progress["read"] == 0)
    del reader  # its traceback has the read
    await asyncio.sleep(0)
    gc.collect()
    assert caplog.records == []
    assert len(await world.log.after(at(0))) == 100


async def test_kept_pages_are_bounded() -> None:
    """The number of kept pages is bounded; the last used ones stay."""
    world = World(4000)
    for number in range(40):
        await world.log.after(at(number * 100))
        await world.log.after(at(0))
    assert world.reads == 40
    await world.log.after(at(3900))
    assert world.reads == 40
    await world.log.after(at(100))
    assert world.reads == 41


async def test_kept_bytes_are_bounded() -> None:
    """At most 8 MiB of pages are kept, which are eight of 1 MB; the oldest are read again."""
    world = World(520, data='"%s"' % ("x" * 20_000))
    for number in range(0, 500, 50):
        await world.log.after(at(number))
    before = world.reads
    for number in range(200, 500, 50):
        await world.log.after(at(number))
    assert world.reads == before
    await world.log.after(at(0))
    assert world.reads == before + 1


# -- large events

LARGE = '"%s"' % ("x" * 1000)


class LargeWorld(World):
    """The same with events of a kilobyte, of which one answer holds about three, and a memory of five."""

    def __init__(self, events: int, *, answer: int = 3500, data: str = LARGE) -> None:
        super().__init__(events, data=data)
        self.redis.page_bytes = answer
        self.log.ring.most_bytes = 5500


async def test_an_answer_that_is_cut_off() -> None:
    """A page of large events ends where an answer of Redis ends, and the next one goes on from there."""
    world = LargeWorld(20)
    assert outline(await world.log.after(at(0))) == ["1", "2", "3"]
    assert outline(await world.log.after(at(3))) == ["4"]
    assert outline(await world.log.after(at(0))) == ["1", "2", "3"]
    assert world.reads == 2


async def test_a_place_after_the_cut() -> None:
    """A reader whose place is after the cut reads from its place on, and reads little in vain."""
    world = LargeWorld(100)
    assert outline(await world.log.after(at(50))) == ["51", "52", "53"]
    assert world.reads == 2
    assert outline(await world.log.after(at(70))) == ["71"]
    assert world.reads == 3


async def test_one_event_that_is_larger_than_an_answer() -> None:
    """An event of any size is read, alone; a page that exceeds what may be kept is read again."""
    world = LargeWorld(3, answer=10)
    for number in (0, 1, 2):
        assert outline(await world.log.after(at(number))) == [str(number + 1)]
    assert world.reads == 3


async def test_readers_share_small_pages() -> None:
    """Readers at different places of one range share reads where pages are small because events are large."""
    world = LargeWorld(200, answer=12_000)
    await world.log.after(at(0))
    before = world.reads
    await asyncio.gather(*(world.log.after(at(number)) for number in range(100, 200)))
    assert world.reads - before <= 20


async def test_pages_grow_again() -> None:
    """After large events, or after a time with a slow link, pages have a hundred events again."""
    world = LargeWorld(3)
    fill(world.redis, 1000)
    world.log.ring.start(world.redis.place)
    here, sizes = at(0), []
    while here != world.log.place:
        frames = await world.log.after(here)
        world.redis.page_bytes = 1024 * 1024
        sizes.append(len(frames))
        here = frames[-1].place
    assert sizes[0] < 20
    assert sizes[-3:-1] == [100, 100]
    assert world.reads < 30


async def test_kept_memory_has_each_page_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is read again with another end takes the place of the first one."""
    world = LargeWorld(100, data='"%s"' % ("x" * 100))
    monkeypatch.setattr(log_module, "KEPT_BYTES", sum(len(event) for _, event in world.redis.history.values()) + 5000)
    await world.log.after(at(0))
    world.redis.page_bytes = 1024 * 1024
    for number in (50, 60, 90):  # answers that are not cut let pages grow again
        await world.log.after(at(number))
    reads = world.reads
    assert (await world.log.after(at(0)))[0].place == at(1)
    assert world.reads == reads


async def test_memory_is_given_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader gets about a mebibyte at once from memory too, because a slow client holds what it was given last."""
    world = World(3)
    monkeypatch.setattr(log_module, "PAGE_BYTES", 2500)
    world.log.append([Frame.of(E1, entry(number, LARGE)) for number in range(4, 10)])
    assert outline(await world.log.after(at(3))) == ["4", "5"]
    assert outline(await world.log.after(at(8))) == ["9"]


# -- the oldest, and the newest


async def test_oldest() -> None:
    """The oldest number is read each time, once for callers that ask at the same time."""
    world = World(150)
    assert await asyncio.gather(world.log.oldest(), world.log.oldest()) == [1, 1]
    assert world.reads == 1
    world.redis.trim(20)
    assert await world.log.oldest() == 131
    fill(world.redis, 5)
    world.redis.lose_history()
    assert await world.log.oldest() == 151
    world.redis.flush()
    with pytest.raises(Moved):
        await world.log.oldest()


@pytest.mark.parametrize("count", [0, 3, 10, 150])
async def test_newest(count: int) -> None:
    """The newest events up to a position are as many as memory holds, and come with the place before them."""
    world = World(count + 1)
    place, frames = await world.log.newest(at(count))
    assert place == at(max(0, count - 10))
    assert outline(frames) == [str(number) for number in range(place.sequence + 1, count + 1)]


async def test_newest_of_large_events() -> None:
    """Of large events only those are read that fit into memory, or little more."""
    world = LargeWorld(100)
    place, frames = await world.log.newest(at(100))
    assert place == at(95)
    assert [frame.place.sequence for frame in frames] == list(range(96, 101))
    world.log.ring.most_bytes = 8000
    place, frames = await world.log.newest(at(100))
    assert 91 <= place.sequence <= 93
    assert outline(frames) == [str(number) for number in range(place.sequence + 1, 101)]


async def test_newest_of_a_short_history() -> None:
    """Events that the history no longer has are not in the way of those that it has."""
    world = World(100)
    world.redis.trim(7)
    del world.redis.history[97]
    place, frames = await world.log.newest(at(100))
    assert place == at(93)
    assert [frame.place.sequence for frame in frames] == [94, 95, 96, 97, 98, 99, 100]
    assert frames[3].entry is None
    world.redis.lose_history()
    assert await world.log.newest(at(100)) == (at(100), [])


FULL = FakeRedis()
fill(FULL, 450)


@given(
    kept=st.integers(1, 450),
    holes=st.sets(st.integers(1, 450), max_size=8),
    place=st.integers(0, 450),
    size=st.integers(1, 30),
    in_memory=st.integers(0, 40),
)
@settings(deadline=None)
async def test_reading_on_and_on(kept: int, holes: set[int], place: int, size: int, in_memory: int) -> None:
    """From any position every event comes once and in order, with a gap for each hole, or the read raises Gone."""
    redis = FakeRedis()
    redis.place, redis.history = at(450), dict(FULL.history)
    redis.trim(kept)
    for hole in holes:
        redis.history.pop(hole, None)
    log = Log(PausableTransport(redis), size)
    log.ring.start(at(450 - in_memory))
    log.append(Frame.of(E1, entry(number, id=FULL.id_of(number))) for number in range(451 - in_memory, 451))

    here, seen, gaps = at(place), [], set()
    while here != log.place:
        try:
            frames = await log.after(here)
        except Gone as gone:
            frames = [Frame.gap(E1, here.sequence + 1, gone.oldest - 1)]
        for frame in frames:
            assert frame.place > here
            if frame.entry is None:
                gaps.update(range(here.sequence + 1, frame.place.sequence + 1))
            else:
                assert frame.place.sequence == here.sequence + 1
                seen.append(frame.place.sequence)
            here = frame.place
    memory = set(range(451 - min(in_memory, size), 451))
    assert seen == sorted(n for n in range(place + 1, 451) if n in redis.history or n in memory)
    assert gaps == set(range(place + 1, 451)).difference(seen)

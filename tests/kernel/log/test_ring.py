"""The ring: the newest frames, the replica's position, and the frames after a position."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.log.frames import Frame
from kernel.log.ring import Ring
from kernel.position import NOWHERE, Fence, Position
from tests.fakes import entry


def event(sequence: int, epoch: str = "e") -> Frame:
    """Return the frame of an event."""
    return Frame.of(epoch, entry(sequence))


def places(frames: list[Frame] | None) -> list[Position] | None:
    """Return the positions of the frames."""
    return None if frames is None else [frame.place for frame in frames]


def numbers(frames: list[Frame] | None) -> list[int] | None:
    """Return the numbers of the frames."""
    return None if frames is None else [frame.place.sequence for frame in frames]


def test_a_new_ring_is_nowhere() -> None:
    """Until Redis was reached the epoch is "" and the number 0."""
    ring = Ring(3)
    assert (ring.place, ring.fence, len(ring)) == (NOWHERE, Fence(NOWHERE, ""), 0)
    assert ring.since(NOWHERE) == []
    assert ring.since(Position("e", 0)) is None
    assert ring.of_epoch() == []


def test_place_is_the_newest_frame() -> None:
    """The ring's position is that of its newest frame, the same object."""
    ring = Ring(3)
    ring.start(Position("e", 4))
    frames = [event(5), event(6)]
    ring.append(frames)
    assert ring.place is frames[-1].place
    assert ring.fence == Fence(Position("e", 6), "id-6", verified=(6, "id-6"))


def test_a_marker_bears_no_id() -> None:
    """After a marker only the number is known, not the id of the event that has it."""
    ring = Ring(3)
    ring.start(Position("e", 1))
    ring.append([event(2), Frame.gap("e", 3, 9)])
    assert ring.fence == Fence(Position("e", 9), "", verified=(2, "id-2"))


def test_the_oldest_go() -> None:
    """The oldest frames are dropped; for positions before those that are kept the ring returns None."""
    ring = Ring(3)
    ring.start(Position("e", 0))
    ring.append(event(number) for number in range(1, 6))
    assert len(ring) == 3
    assert numbers(ring.since(Position("e", 5))) == []
    assert numbers(ring.since(Position("e", 4))) == [5]
    assert numbers(ring.since(Position("e", 2))) == [3, 4, 5]
    assert ring.since(Position("e", 1)) is None
    assert ring.since(Position("other", 4)) is None


def test_large_frames_are_fewer() -> None:
    """Memory is bounded in bytes too, but the newest frame is always there."""
    size = event(10).size
    ring = Ring(10, most_bytes=3 * size)
    ring.start(Position("e", 9))
    ring.append(event(number) for number in range(10, 16))
    assert (len(ring), ring.base) == (3, Position("e", 12))
    assert numbers(ring.since(Position("e", 12))) == [13, 14, 15]
    assert ring.since(Position("e", 11)) is None
    ring.append([Frame.of("e", entry(16, '"%s"' % ("x" * 1000)))])
    assert (len(ring), ring.base, ring.place) == (1, Position("e", 15), Position("e", 16))
    ring.append([event(17)])
    assert numbers(ring.since(Position("e", 16))) == [17]


def test_a_place_beyond_the_newest() -> None:
    """Nothing follows a position beyond the newest."""
    ring = Ring(3)
    ring.start(Position("e", 7))
    assert ring.since(Position("e", 8)) == []
    ring.append([event(8)])
    assert ring.since(Position("e", 9)) == []


def test_a_place_within_a_gap() -> None:
    """A position within a gap gets a gap for the rest of it."""
    ring = Ring(5)
    ring.start(Position("e", 1))
    ring.append([event(2), Frame.gap("e", 3, 5), event(6)])
    assert numbers(ring.since(Position("e", 4))) == [5, 6]
    assert numbers(ring.since(Position("e", 5))) == [6]


def test_a_place_in_an_older_epoch() -> None:
    """The marker stands between the last frame of the old and the first of the new epoch."""
    ring = Ring(5)
    ring.start(Position("old", 7))
    ring.append([event(8, "old"), Frame.new_epoch("new"), event(1, "new")])
    assert places(ring.since(Position("old", 7))) == [("old", 8), ("new", 0), ("new", 1)]
    assert places(ring.since(Position("old", 8))) == [("new", 0), ("new", 1)]
    assert places(ring.since(Position("old", 99))) == [("new", 0), ("new", 1)]
    assert places(ring.since(Position("new", 0))) == [("new", 1)]


def test_of_epoch() -> None:
    """`of_epoch` returns the events of the current epoch, without markers."""
    ring = Ring(9)
    ring.start(Position("old", 7))
    ring.append([event(8, "old"), Frame.new_epoch("new"), event(1, "new"), Frame.gap("new", 2, 3), event(4, "new")])
    assert numbers(ring.of_epoch()) == [1, 4]


def test_start_forgets() -> None:
    """`start` empties the ring and moves it to a position."""
    ring = Ring(3)
    ring.start(Position("e", 0))
    ring.append([event(1)])
    ring.start(Position("f", 5))
    assert (ring.place, ring.fence, len(ring)) == (("f", 5), Fence(Position("f", 5), "", left=("e",)), 0)
    assert ring.since(Position("e", 1)) is None


STEPS = st.lists(
    st.tuples(st.just("events"), st.integers(1, 5))
    | st.tuples(st.just("gap"), st.integers(1, 4))
    | st.just(("epoch", 0)),
    max_size=12,
)


@given(
    size=st.integers(1, 8), begin=st.integers(0, 3), steps=STEPS, epoch=st.integers(-1, 5), sequence=st.integers(0, 40)
)
@pytest.mark.parametrize("nowhere", [False, True])
def test_since_against_a_naive_list(
    nowhere: bool, size: int, begin: int, steps: list[tuple[str, int]], epoch: int, sequence: int
) -> None:
    """Any position gets the frames that a plain list would give, or None if some of them were dropped."""
    ring = Ring(size)
    log: list[Frame] = []
    here = NOWHERE
    if not nowhere:
        here = Position("0", begin)
        ring.start(here)
    everything = [here]
    epochs = 0
    for kind, count in steps:
        if kind == "events":
            frames = [event(here.sequence + n, here.epoch) for n in range(1, count + 1)]
        elif kind == "gap":
            frames = [Frame.gap(here.epoch, here.sequence + 1, here.sequence + count)]
        else:
            epochs += 1
            frames = [Frame.new_epoch(str(epochs))]
        ring.append(frames)
        log += frames
        here = frames[-1].place
        everything += [frame.place for frame in frames]
        assert ring.place is here

    wanted = Position("" if epoch < 0 else str(epoch), sequence)
    at = max((i for i, p in enumerate(everything) if p.epoch == wanted.epoch and p.sequence <= sequence), default=None)
    # everything[i] is the position before log[i]
    expected = None if at is None or len(log) - at > size else log[at:]
    assert ring.since(wanted) == expected
    assert len(ring) == min(size, len(log))

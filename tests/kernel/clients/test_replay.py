"""Replay: every decision about a resume, without a log, a client or a loop."""

from typing import Any

import msgspec
import pytest

from kernel.clients.replay import Replay, ReplayState, Resume, Verdict
from kernel.log.frames import Frame
from kernel.position import NOWHERE, Position
from tests.fakes import entry

E1, E2 = "epoch-1", "epoch-2"
HERE = Position(E1, 250)


def asks(last_sequence: int, epoch: str | None = None) -> Resume:
    """Return a request."""
    return Resume("events", last_sequence, epoch)


def events(first: int, last: int, epoch: str = E1) -> list[Frame]:
    """Return the frames of consecutive events."""
    return [Frame.of(epoch, entry(number)) for number in range(first, last + 1)]


def started(resume: Resume, *, told: str = E1, here: Position = HERE) -> Replay:
    """Return a replay that has started."""
    replay = Replay(resume)
    replay.start(told, here)
    return replay


def ack(replay: Replay) -> dict[str, Any]:
    """Return the message that ends a replay, as the client reads it."""
    assert replay.state is ReplayState.OVER
    message: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(replay.ack))
    return message


# -- before the start


@pytest.mark.parametrize(
    ("resume", "here", "expected"),
    [
        pytest.param(asks(0), HERE, False, id="from the beginning"),
        pytest.param(asks(250), HERE, False, id="at the newest"),
        pytest.param(asks(250, E1), HERE, False, id="at the newest of this epoch"),
        pytest.param(asks(251), HERE, True, id="beyond the newest"),
        pytest.param(asks(251, E1), HERE, True, id="beyond the newest of this epoch"),
        pytest.param(asks(3, E2), HERE, True, id="another epoch"),
        pytest.param(asks(0), NOWHERE, True, id="Redis was never reached"),
    ],
)
def test_must_ask(resume: Resume, here: Position, expected: bool) -> None:
    """Redis must be asked first about another epoch, and about a number that is not here yet; but once only."""
    replay = Replay(resume)
    assert replay.must_ask(here) is expected
    assert replay.state is (ReplayState.ASKING if expected else ReplayState.REQUESTED)
    assert not replay.must_ask(here)
    assert not replay.started


@pytest.mark.parametrize(
    ("resume", "here", "place"),
    [
        (asks(100), HERE, Position(E1, 100)),
        (asks(100, E1), HERE, Position(E1, 100)),
        (asks(999), HERE, HERE),
        (asks(100, E2), HERE, Position(E1, 0)),
        (asks(100, E1), NOWHERE, NOWHERE),
    ],
)
def test_provisional_place(resume: Resume, here: Position, place: Position) -> None:
    """Until its replay starts a client stands where it says it is, as far as that is possible here."""
    assert resume.provisional_place(here) == place


# -- the start


@pytest.mark.parametrize(
    ("resume", "told", "here", "first", "state", "verdict"),
    [
        pytest.param(asks(100), E1, HERE, 100, ReplayState.READING, Verdict.RECOVERED, id="a number"),
        pytest.param(asks(100, E1), E1, HERE, 100, ReplayState.READING, Verdict.RECOVERED, id="number and epoch"),
        pytest.param(asks(250), E1, HERE, 250, ReplayState.OVER, Verdict.RECOVERED, id="at the newest"),
        pytest.param(asks(251), E1, HERE, 250, ReplayState.OVER, Verdict.AHEAD, id="ahead"),
        pytest.param(asks(10**30, E1), E1, HERE, 250, ReplayState.OVER, Verdict.AHEAD, id="far ahead"),
        pytest.param(asks(100, E2), E1, HERE, 0, ReplayState.READING, Verdict.EPOCH_CHANGED, id="another epoch"),
        pytest.param(asks(999, E2), E1, HERE, 0, ReplayState.READING, Verdict.EPOCH_CHANGED, id="another, far ahead"),
        pytest.param(
            asks(0, E2), E1, Position(E1, 0), 0, ReplayState.OVER, Verdict.EPOCH_CHANGED, id="another, empty log"
        ),
        pytest.param(asks(100), E2, HERE, 0, ReplayState.READING, Verdict.EPOCH_CHANGED, id="was told another epoch"),
        pytest.param(asks(100, E1), E2, HERE, 100, ReplayState.READING, Verdict.RECOVERED, id="knows it already"),
        pytest.param(asks(100), "", HERE, 100, ReplayState.READING, Verdict.RECOVERED, id="was told no epoch yet"),
        pytest.param(asks(0), E1, Position(E1, 0), 0, ReplayState.OVER, Verdict.RECOVERED, id="empty log"),
    ],
)
def test_start(resume: Resume, told: str, here: Position, first: int, state: ReplayState, verdict: Verdict) -> None:
    """A replay starts after the number that was asked for, or at the start of the history in another epoch."""
    replay = Replay(resume)
    assert replay.state is ReplayState.REQUESTED
    marker = replay.start(told, here)
    assert (replay.first, replay.place, replay.target) == (
        Position(here.epoch, first),
        Position(here.epoch, first),
        here,
    )
    assert (replay.state, replay.verdict, replay.count) == (state, verdict, 0)
    assert replay.started
    assert not replay.must_ask(NOWHERE)
    if told == here.epoch:
        assert marker is None
    else:
        assert marker is not None
        assert marker.message(replay=False) == {"type": "epoch_changed", "epoch": here.epoch}


# -- reading


def test_recovered() -> None:
    """Frames are written as they are read; at the target the replay is over and everything is recovered."""
    replay = started(asks(247, E1))
    for number in (248, 249, 250):
        assert replay.state is ReplayState.READING
        assert replay.place == Position(E1, number - 1)
        frames = events(number, number)
        assert replay.read(frames) == frames
        replay.wrote(1)
    assert ack(replay) == {
        "type": "resync_ack",
        "channel": "events",
        "epoch": E1,
        "last_sequence": 247,
        "replayed_count": 3,
        "recovered": True,
    }


def test_only_written_events_count() -> None:
    """Events that the client's patterns do not let through are read but not counted."""
    replay = started(asks(240))
    replay.read(events(241, 250))
    replay.wrote(4)
    replay.wrote(2)
    assert ack(replay)["replayed_count"] == 6


def test_events_beyond_the_target() -> None:
    """Events that arrived since the start are replayed if they come with the others, and the replay is over."""
    replay = started(asks(248))
    frames = events(249, 253)
    assert replay.read(frames) == frames
    assert replay.place == Position(E1, 253)
    assert ack(replay)["recovered"]


@pytest.mark.parametrize(
    ("frames", "oldest"),
    [
        pytest.param([Frame.gap(E1, 241, 245), *events(246, 250)], 246, id="at the beginning"),
        pytest.param([*events(241, 243), Frame.gap(E1, 244, 245), *events(246, 250)], 246, id="within"),
        pytest.param([Frame.gap(E1, 241, 242), *events(243, 243), Frame.gap(E1, 244, 250)], 251, id="the last of two"),
    ],
)
def test_gap_markers(frames: list[Frame], oldest: int) -> None:
    """A gap marker is written where it stands, and the event after the last one is the oldest available."""
    replay = started(asks(240))
    assert replay.read(frames) == frames
    verdict = ack(replay)
    assert (verdict["recovered"], verdict["gap_too_old"], verdict["oldest_available"]) == (False, True, oldest)
    assert "epoch_changed" not in verdict


@pytest.mark.parametrize(
    ("oldest", "state"), [(151, ReplayState.READING), (250, ReplayState.READING), (251, ReplayState.OVER)]
)
def test_gone(oldest: int, state: ReplayState) -> None:
    """Events that are no longer kept are skipped, and the verdict names the oldest that is."""
    replay = started(asks(100))
    assert replay.gone(oldest) is None
    assert (replay.place, replay.state) == (Position(E1, oldest - 1), state)
    if state is ReplayState.READING:
        replay.read(events(oldest, 250))
    verdict = ack(replay)
    assert (verdict["recovered"], verdict["gap_too_old"], verdict["oldest_available"]) == (False, True, oldest)


def test_gone_while_reading() -> None:
    """The history may lose events while it is read; a marker stands where they were, and the newest loss counts."""
    replay = started(asks(100))
    assert replay.must_learn
    replay.learned(151)
    assert not replay.must_learn
    replay.read(events(151, 200))
    gap = replay.gone(231)
    assert gap is not None
    assert gap.message(replay=False) == {"type": "gap", "from": 201, "to": 230}
    replay.read(events(231, 250))
    assert ack(replay)["oldest_available"] == 231


@pytest.mark.parametrize("oldest", [1, 50, 101])
def test_learned_that_nothing_is_gone(oldest: int) -> None:
    """A history that begins before the next event changes nothing."""
    replay = started(asks(100))
    replay.learned(oldest)
    assert replay.place == Position(E1, 100)
    replay.read(events(101, 250))
    assert ack(replay)["recovered"]


# -- another epoch


def test_asked_for_another_epoch() -> None:
    """A client of another epoch gets the history from its start, and the verdict names both reasons."""
    replay = started(asks(3, E2))
    replay.gone(151)
    replay.read(events(151, 250))
    replay.wrote(100)
    assert ack(replay) == {
        "type": "resync_ack",
        "channel": "events",
        "epoch": E1,
        "last_sequence": 3,
        "replayed_count": 100,
        "recovered": False,
        "gap_too_old": True,
        "oldest_available": 151,
        "epoch_changed": True,
    }


def test_asked_for_another_epoch_and_all_is_kept() -> None:
    """A client of another epoch that gets all events of this one is not told of a gap."""
    replay = started(asks(3, E2))
    replay.learned(1)
    replay.read(events(1, 250))
    verdict = ack(replay)
    assert (verdict["recovered"], verdict["epoch_changed"]) == (False, True)
    assert not verdict.keys() & {"gap_too_old", "oldest_available"}


@pytest.mark.parametrize("lost", [False, True])
def test_the_epoch_changes_while_reading(lost: bool) -> None:
    """When another epoch begins the replay ends where it is: none of the new epoch's frames belong to it."""
    replay = started(asks(100))
    if lost:
        replay.gone(121)
    replay.read(events(121 if lost else 101, 150))
    assert replay.read([Frame.new_epoch(E2), *events(1, 9, E2)]) == []
    assert replay.place == Position(E1, 150)
    verdict = ack(replay)
    assert (verdict["epoch"], verdict["recovered"], verdict["epoch_changed"]) == (E1, False, True)
    assert verdict.get("oldest_available") == (121 if lost else None)
    assert verdict.get("gap_too_old", False) is lost


def test_the_epoch_changes_after_the_target() -> None:
    """When the new epoch comes together with the last events, those are replayed and nothing is lost."""
    replay = started(asks(248))
    rest = events(249, 250)
    assert replay.read([*rest, Frame.new_epoch(E2), *events(1, 2, E2)]) == rest
    assert ack(replay)["recovered"]


def test_ahead() -> None:
    """A client that is ahead of the log gets no event, and a verdict that names neither of the other two reasons."""
    verdict = ack(started(asks(251, E1)))
    assert (verdict["recovered"], verdict["replayed_count"]) == (False, 0)
    assert not verdict.keys() & {"gap_too_old", "oldest_available", "epoch_changed"}

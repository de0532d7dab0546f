"""Tests of the history checker: it finds each breach, and accepts every correct history."""

from typing import Any

import pytest

from tests.history import ClientRecord, Connection, History, Place, Reader, violations
from tests.system.producers import marked

Frames = list[dict[str, Any]]


def published(count: int, epoch: str = "one", kind: str = "event", first: int = 1) -> History:
    """Return a history with receipts for `count` events."""
    history = History()
    for number in range(first, first + count):
        history.receipt(kind, marked(kind, f"{epoch}-{number}"), {"epoch": epoch, "sequence": number})
    return history


def event(sequence: int, epoch: str = "one", kind: str = "event", **more: object) -> dict[str, Any]:
    """Return a live frame."""
    return {"type": kind, "data": marked(kind, f"{epoch}-{sequence}"), "sequence": sequence, **more}


def replayed(sequence: int, epoch: str = "one") -> dict[str, Any]:
    """Return a replayed frame."""
    return event(sequence, epoch, replay=True)


def hello(last: int = 0, epoch: str = "one") -> dict[str, Any]:
    """Return a first frame."""
    return {"type": "connected", "epoch": epoch, "lastSeq": last}


def beat(last: int, epoch: str = "one") -> dict[str, Any]:
    """Return a heartbeat."""
    return {"type": "ping", "epoch": epoch, "lastSeq": last}


def ack(since: int, count: int, epoch: str = "one", **more: object) -> dict[str, Any]:
    """Return a `resync_ack`."""
    return {
        "type": "resync_ack",
        "epoch": epoch,
        "last_sequence": since,
        "replayed_count": count,
        "recovered": True,
        **more,
    }


def live(*frames: dict[str, Any]) -> Connection:
    """Return a connection without a resume."""
    return Connection("here", None, "", frames)


def resumed(since: int, *frames: dict[str, Any], epoch: str = "one") -> Connection:
    """Return a connection that resumed."""
    return Connection("there", since, epoch, frames)


def seen(*connections: Connection, patterns: list[str] | None = None) -> list[ClientRecord]:
    """Return the record of one client."""
    return [ClientRecord("client", patterns, list(connections))]


CORRECT = {
    "live": [live(hello(), event(1), beat(1), event(2), event(3))],
    "joined later": [live(hello(2), event(3))],
    "resumed": [live(hello(), event(1)), resumed(1, hello(3), replayed(2), replayed(3), ack(1, 2))],
    "resumed from a heartbeat": [live(hello(2), beat(2)), resumed(2, hello(3), replayed(3), ack(2, 1), beat(3))],
    "cut within a replay": [
        live(hello(), event(1)),
        resumed(1, hello(3), beat(1), replayed(2)),
        resumed(2, hello(3), replayed(3), ack(2, 1)),
    ],
    "resumed at a replica that is behind": [
        live(hello(), event(1), event(2)),
        resumed(2, hello(1), beat(1), replayed(3), ack(2, 1), beat(3)),
    ],
    "resumed at first, at a replica that is behind": [
        resumed(1, hello(0), beat(0), replayed(2), ack(1, 1), event(3)),
    ],
    "gap announced": [live(hello(), event(1), {"type": "gap", "from": 2, "to": 2}, event(3))],
    "verdict announced": [
        live(hello(), beat(0)),
        resumed(0, hello(3), replayed(3), ack(0, 1, recovered=False, gap_too_old=True, oldest_available=3)),
    ],
    "before Redis was there": [live(hello(epoch=""), {"type": "epoch_changed", "epoch": "one"}, event(2), event(3))],
    "nothing at all": [],
}


@pytest.mark.parametrize("case", CORRECT)
def test_correct_history(case: str) -> None:
    """A correct history has no violations."""
    assert violations(published(3), seen(*CORRECT[case])) == []


BREACHES = {
    "missing": ([live(hello(), event(1), event(3))], "2) is missing"),
    "missing at the end": ([live(hello(), event(1), event(2))], "3) is missing"),
    "missing after a resume": (
        [live(hello(), event(1)), resumed(1, hello(3), replayed(3), ack(1, 1))],
        "2) is missing",
    ),
    "twice": ([live(hello(), event(1), event(1), event(2), event(3))], "1) came twice"),
    "twice over connections": (
        [live(hello(), event(1), event(2)), resumed(2, hello(3), replayed(2), replayed(3), ack(2, 2))],
        "2) came twice",
    ),
    "out of order": ([live(hello(), event(2), event(1), event(3))], "1) came after"),
    "from before": ([live(hello(1), event(1), event(2), event(3))], "1) came after"),
    "not what was resumed from": (
        [live(hello(1), beat(2)), resumed(2, hello(3), replayed(2), replayed(3), ack(2, 2))],
        "2) came after",
    ),
    "heartbeat ahead": ([live(hello(), event(1), beat(3), event(2), event(3))], "had not come before heartbeat"),
    "heartbeat behind": ([live(hello(), event(1), event(2), beat(1), event(3))], "is behind"),
    "heartbeat behind a resume": (
        [live(hello(), *map(event, (1, 2, 3))), resumed(3, hello(3), ack(3, 0), beat(2))],
        "is behind",
    ),
    "other content": ([live(hello(), event(1), event(2), {**event(1), "sequence": 3})], "but the receipt was for"),
    "not published": ([live(hello(), event(1), event(2), event(3), event(4))], "never published"),
    "a gap over what came": (
        [live(hello(), event(1), event(2), {"type": "gap", "from": 2, "to": 2}, event(3))],
        "had come",
    ),
    "a live frame within a replay": (
        [live(hello(), event(1)), resumed(1, hello(3), event(2), replayed(3), ack(1, 1))],
        "a live frame within a replay",
    ),
    "miscounted": ([live(hello(), event(1)), resumed(1, hello(3), replayed(2), replayed(3), ack(1, 3))], "replayed_"),
    "first frame": ([live(event(1), event(2), event(3))], "the first frame is"),
    "heartbeat of another epoch": ([live(hello(), *map(event, (1, 2, 3)), beat(3, "two"))], "heartbeat of epoch"),
}


def test_gap_of_another_epoch() -> None:
    """A gap within a replay belongs to the epoch of the `resync_ack`."""
    gap = {"type": "gap", "from": 1, "to": 1}
    verdict = ack(2, 2, "two", recovered=False, epoch_changed=True)
    events = [replayed(number, "two") for number in (2, 3)]
    came_back = resumed(2, hello(3, "two"), gap, *events, verdict, beat(3, "two"))
    assert violations(published(3, "two"), seen(live(hello(), beat(2)), came_back)) == []


@pytest.mark.parametrize("case", BREACHES)
def test_breach(case: str) -> None:
    """Each breach is reported."""
    connections, complaint = BREACHES[case]
    found = violations(published(3), seen(*connections))
    assert any(complaint in line for line in found), found


def test_patterns() -> None:
    """A client must get exactly the events of which any name matches one of its patterns."""
    history = published(2)
    history.receipt("camera_status", marked("camera_status", "one-3"), {"epoch": "one", "sequence": 3})
    camera = event(3, kind="camera_status")
    assert violations(history, seen(live(hello(), camera), patterns=["CAMERA.off*"])) == []
    assert violations(history, seen(live(hello(), beat(3)), patterns=["camera.offline"]))
    assert violations(history, seen(live(hello(), event(1), camera), patterns=["camera.*"]))


def changing(*frames: dict[str, Any], changes: list[list[str] | None], first: list[str] | None) -> list[ClientRecord]:
    """Return the record of a client that changed its patterns."""
    connection = live(*frames)
    connection.changes = list(changes)
    return seen(connection, patterns=first)


SUBSCRIBED = {"action": "subscribed", "events": ["alert.*"]}


def test_patterns_that_change() -> None:
    """Each event obeys the patterns of its time, wherever between two known positions they have changed."""
    history = published(2)
    history.accepted |= published(2, kind="alert_deleted", first=3).accepted
    alerts = [event(number, kind="alert_deleted") for number in (3, 4)]
    for before in ([event(1)], [event(1), event(2)], [beat(1)]):
        frames = [hello(0 if "data" in before[0] else 1), *before, SUBSCRIBED, *alerts]
        assert violations(history, changing(*frames, first=["event"], changes=[["alert.*"]])) == []
    known = [hello(), event(1), beat(2), SUBSCRIBED, *alerts]
    late = [hello(), event(1), SUBSCRIBED, event(2), *alerts]
    lost = [hello(), event(1), event(2), SUBSCRIBED, beat(2), alerts[1]]
    for frames, complaint in (
        (known, "2) had not come"),
        (late, "nobody asked for"),
        (lost, "3) is missing"),
    ):
        found = violations(history, changing(*frames, first=["event"], changes=[["alert.*"]]))
        assert any(complaint in line for line in found), found
    assert any("not asked for" in line for line in violations(history, changing(*known, first=["event"], changes=[])))


def test_patterns_outlast_a_connection() -> None:
    """A client that comes back has the patterns that it had last."""
    history = published(1)
    history.accepted |= published(1, kind="alert_deleted", first=2).accepted
    first = live(hello(), event(1), SUBSCRIBED)
    first.changes = [["alert.*"]]
    frame = {**event(2, kind="alert_deleted"), "replay": True}
    assert violations(history, seen(first, resumed(1, hello(2), frame, ack(1, 1)), patterns=["event"])) == []
    assert violations(history, seen(first, resumed(1, hello(2), ack(1, 0)), patterns=["event"]))


def asking(*frames: dict[str, Any], resyncs: list[int], epoch: str = "one") -> Connection:
    """Return an open connection on which the client asked for replays."""
    connection = live(*frames)
    connection.resyncs = [Place(epoch, since) for since in resyncs]
    connection.open = True
    return connection


ALL = [hello(), *map(event, (1, 2, 3))]
CORRECT_RESYNCS = {
    "one": ([*ALL, replayed(2), replayed(3), ack(1, 2)], [1]),
    "none is missing": ([*ALL, ack(3, 0), beat(3)], [3]),
    "live frames before it": ([hello(), event(1), event(2), replayed(2), ack(1, 1), event(3)], [1]),
    "two": ([*ALL, replayed(3), ack(2, 1), *map(replayed, (1, 2, 3)), ack(0, 3), beat(3)], [2, 0]),
    "heartbeats within it": ([*ALL, beat(1), replayed(2), beat(2), replayed(3), ack(1, 2), beat(3)], [1]),
    "more than it had": ([hello(), replayed(3), ack(2, 1)], [2]),
    "gap within it": (
        [
            *ALL,
            {"type": "gap", "from": 2, "to": 2},
            replayed(3),
            ack(1, 1, recovered=False, gap_too_old=True, oldest_available=3),
        ],
        [1],
    ),
}
WRONG_RESYNCS = {
    "missing at the start": ([*ALL, replayed(3), ack(1, 1)], [1], "2) is missing"),
    "missing at the end": ([*ALL, replayed(2), ack(1, 1)], [1], "3) is missing"),
    "missing after it": ([hello(), event(1), event(2), replayed(2), ack(1, 1)], [1], "3) is missing"),
    "twice": ([*ALL, replayed(2), replayed(2), replayed(3), ack(1, 3)], [1], "2) came twice"),
    "out of order": ([*ALL, replayed(3), replayed(2), ack(1, 2)], [1], "2) came after"),
    "from too early": ([*ALL, replayed(2), replayed(3), ack(2, 2)], [2], "2) came twice"),
    "live frame": ([*ALL[:3], replayed(2), event(3), ack(1, 1)], [1], "a live frame within a replay"),
    "not asked for": ([*ALL, replayed(3)], [], "a replayed frame outside of a replay"),
    "verdict not asked for": ([*ALL, ack(3, 0)], [], "a verdict without a replay"),
    "verdict on another": ([*ALL, replayed(3), ack(1, 1)], [2], "but 2 was asked for"),
    "miscounted": ([*ALL, replayed(3), ack(2, 0)], [2], "replayed_count 0, but 1 frames came"),
    "not answered": (ALL, [2], "not answered"),
    "no verdict": ([*ALL, replayed(3)], [2], "not answered"),
    "second one not answered": ([*ALL, replayed(3), ack(2, 1)], [2, 2], "not answered"),
    "heartbeat ahead within it": ([*ALL, replayed(2), beat(3), replayed(3), ack(1, 2)], [1], "had not come before"),
}


@pytest.mark.parametrize("case", CORRECT_RESYNCS)
def test_correct_resyncs(case: str) -> None:
    """After a resync, events that had arrived come again."""
    frames, resyncs = CORRECT_RESYNCS[case]
    assert violations(published(3), seen(asking(*frames, resyncs=resyncs))) == []


@pytest.mark.parametrize("case", WRONG_RESYNCS)
def test_wrong_resyncs(case: str) -> None:
    """A replay is complete, in order, counted, and answers the resync; each resync is answered."""
    frames, resyncs, complaint = WRONG_RESYNCS[case]
    found = violations(published(3), seen(asking(*frames, resyncs=resyncs)))
    assert any(complaint in line for line in found), found


def test_resync_that_is_cut_off() -> None:
    """A client whose connection ends within a replay resumes from the highest position that it had."""
    cut = asking(*ALL[:3], replayed(1), resyncs=[0])
    cut.open = False
    assert violations(published(3), seen(cut, resumed(2, hello(3), replayed(3), ack(2, 1)))) == []


def test_resync_of_another_epoch() -> None:
    """A resync after a number of an epoch that is over is answered by a replay of everything."""
    history = published(1)
    history.accepted |= published(2, "two").accepted
    begun = [hello(), event(1), {"type": "epoch_changed", "epoch": "two"}, event(1, "two")]
    verdict = ack(1, 2, "two", recovered=False, epoch_changed=True)
    frames = [*begun, replayed(1, "two"), replayed(2, "two"), verdict]
    assert violations(history, seen(asking(*frames, resyncs=[1]))) == []


def test_resync_beyond_the_newest() -> None:
    """After a resync from a number that no event has, the client gets every event after the next position."""
    verdict = ack(9, 0, recovered=False)
    assert violations(published(3), seen(asking(hello(), event(1), verdict, beat(2), event(3), resyncs=[9]))) == []
    assert violations(published(4), seen(asking(hello(), event(1), verdict, beat(2), event(4), resyncs=[9])))


def test_complete_history() -> None:
    """A loss must not be announced if Redis has lost nothing."""
    history = published(3)
    history.complete = True
    for case in ("gap announced", "verdict announced"):
        assert any("kept everything" in line for line in violations(history, seen(*CORRECT[case])))


def test_new_epoch() -> None:
    """The rest of an old epoch may be lost; of the new epoch every event must arrive, from its first one."""
    history = published(3)
    history.accepted |= published(2, "two").accepted
    changed = {"type": "epoch_changed", "epoch": "two"}
    begun = [hello(), event(1), changed]
    assert violations(history, seen(live(*begun, event(1, "two"), event(2, "two"), beat(2, "two")))) == []
    assert violations(history, seen(live(*begun, event(2, "two"))))
    assert violations(history, seen(live(hello(), event(1), beat(1, "two"), event(1, "two"), event(2, "two"))))


@pytest.mark.parametrize("told", ["two", ""])
def test_new_epoch_by_resume(told: str) -> None:
    """A replay belongs to the epoch of its `resync_ack`, whatever the first frame said."""
    history = published(1)
    history.accepted |= published(2, "two").accepted
    verdict = ack(1, 2, "two", recovered=False, epoch_changed=True)
    first = [{"type": "epoch_changed", "epoch": "two"}] if told == "" else []
    again = resumed(1, hello(2, told), *first, replayed(1, "two"), replayed(2, "two"), verdict)
    assert violations(history, seen(live(hello(), event(1)), again)) == []


def test_replica_behind() -> None:
    """A replica that is still in the old epoch may replay the new one."""
    history = published(2, "two")
    again = resumed(1, hello(7, "one"), replayed(2, "two"), ack(1, 1, "two"), epoch="two")
    assert violations(history, seen(live(hello(0, "two"), event(1, "two")), again)) == []


def test_unknown_outcome() -> None:
    """A publish of unknown outcome may have happened at most once; each accepted event has exactly one number."""
    history = published(2)
    history.unknown("event", marked("event", "one-3"))
    third = event(3)
    assert violations(history, seen(live(hello(), event(1), event(2)))) == []
    assert violations(history, seen(live(hello(), event(1), event(2), third))) == []
    twice = live(hello(), event(1), event(2), third, {**third, "sequence": 4})
    assert any("two numbers" in line for line in violations(history, seen(twice)))
    history.receipt("event", marked("event", "else"), {"epoch": "one", "sequence": 2})
    assert any("two receipts" in line for line in violations(history, []))


def test_one_position_one_event() -> None:
    """Two clients must not see different events at one position."""
    history = published(1)
    history.unknown("event", marked("event", "one-2"))
    history.unknown("event", marked("event", "else"))
    otherwise = {**event(2), "data": marked("event", "else")}
    recorders = seen(live(hello(), event(1), event(2))) + seen(live(hello(), event(1), otherwise))
    assert any("elsewhere" in line for line in violations(history, recorders))


def test_fork() -> None:
    """After a fork different replicas may have different events at one position, but each only one."""
    history = published(3)
    history.fork("one", 1)
    history.receipt("event", marked("event", "else"), {"epoch": "one", "sequence": 2})
    otherwise = {**event(2), "data": marked("event", "else")}
    here = live(hello(), event(1), event(2), event(3))
    there = Connection("there", None, "", [hello(), event(1), otherwise])
    assert violations(history, seen(here) + seen(there)) == []
    assert violations(history, seen(live(hello(), event(1)))) == []
    both = seen(here) + seen(live(hello(), event(1), otherwise))
    assert any("elsewhere" in line for line in violations(history, both))
    assert any("is missing" in line for line in violations(history, seen(live(hello(), event(2)))))


def test_where_to_resume() -> None:
    """A client resumes from its highest event number or heartbeat, not from the first frame of a resumed connection."""
    reader = Reader()
    for frame in (hello(5), event(6), beat(9), event(8)):
        reader.take(frame)
    assert reader.place == ("one", 9)
    reader.connect(9)
    reader.take(hello(20))
    assert reader.place == ("one", 9)

"""The sum of a delivered batch, as observers are given it."""

import time
from collections.abc import Iterable

import pytest

from kernel.clients.audiences import Audiences
from kernel.clients.client import Client
from kernel.clients.fanout import Walk
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.listening.batch_report import BatchReport
from kernel.log.encodings import Encoding
from kernel.log.frames import Frame
from kernel.observer import Observer, TraceContext, Written
from kernel.position import Position
from tests.fakes import FakeSink, entry
from tests.kernel.replicas import WIRE

TRACED = "00-1-2-01"


class Following(Observer):
    """Follows one trace context."""

    def follows(self, traceparent: str) -> bool:
        """Return True for it."""
        return traceparent == TRACED


def event(sequence: int, published_at: float | None, type: str = "event", traceparent: str | None = None) -> Frame:
    """Return an event with that stamp."""
    stamps = {"published_at": published_at, "traceparent": traceparent}
    return Frame.of("e", entry(sequence, "{}", type=type, **stamps))


def walked(frames: list[Frame], clients: Iterable[Patterns]) -> Walk:
    """Return a walk that has delivered these frames to clients with these patterns."""
    audiences: Audiences[Client, Encoding] = Audiences()
    start = Position("e", 0)
    for number, patterns in enumerate(clients):
        client = Client(str(number), FakeSink(), WIRE, start, patterns)
        client.audience = audiences.join(client, patterns, WIRE)
    walk = Walk(frames, audiences, time.perf_counter)
    for _ in walk:
        pass
    return walk


def test_sums() -> None:
    """A report adds up events, messages and lags over its runs; only stamped events have a lag."""
    report = BatchReport(Observer(), Position("e", 0), 99.9)
    first, second = [event(1, 99.0), event(2, 99.0), event(3, None), Frame.gap("e", 4, 5)], [event(6, 99.5)]
    report.add(first, walked(first, [EVERYTHING] * 2), 100.0)
    report.add(second, walked(second, [EVERYTHING]), 101.0)
    delivered = report.delivered(Position("e", 6), 101.5)
    assert (delivered.first, delivered.last) == (Position("e", 0), Position("e", 6))
    assert (delivered.begin, delivered.end) == (99.9, 101.5)
    assert delivered.events == 4
    assert delivered.written == Written(9, 0, 0)
    assert delivered.lags == [(1.0, 2), (1.5, 1)]
    assert delivered.followed == []


def test_followed_events() -> None:
    """Events whose trace an observer follows come one by one, each with the number of clients that got it."""
    report = BatchReport(Following(), Position("e", 0), 1.0)
    frames = [
        event(1, 0.5, "scene_change", TRACED),
        event(2, 0.5, "scene_change", "00-1-2-00"),
        event(3, 0.5, "event", TRACED),
        event(4, 0.5, "scene_change", TRACED),
    ]
    report.add(frames, walked(frames, [EVERYTHING, Patterns.of(["alert.*"]), Patterns.of(["scene*"])]), 2.0)
    followed = report.delivered(Position("e", 4), 2.0).followed
    assert [(each.position.sequence, each.id, each.type, each.recipients) for each in followed] == [
        (1, "id-1", "scene_change", 2),
        (3, "id-3", "event", 1),
        (4, "id-4", "scene_change", 2),
    ]
    assert {(each.trace, each.published_at, each.written_at) for each in followed} == {(TraceContext(TRACED), 0.5, 2.0)}


def test_the_report_compares_no_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipients of an event were counted by the walk: however many patterns there are, a report compares none."""
    report = BatchReport(Following(), Position("e", 0), 1.0)
    frames = [event(number, 0.5, type, TRACED) for number, type in enumerate(("event", "scene_change"), 1)]
    walk = walked(frames, [Patterns.of(["event", f"camera{number}"]) for number in range(100)])
    for comparison in ("known", "all_known", "matches", "steps"):
        monkeypatch.delattr(Patterns, comparison)
    report.add(frames, walk, 2.0)
    assert [each.recipients for each in report.delivered(Position("e", 2), 2.0).followed] == [100, 0]

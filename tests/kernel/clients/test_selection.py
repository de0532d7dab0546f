"""Selection: the frames that pass, their messages, and the steps in which they are prepared."""

import json
from collections.abc import Iterator

import pytest

from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.clients.selection import Selection
from kernel.log.encodings import AsgiEncoding, WireEncoding
from kernel.log.frames import Frame
from kernel.observer import Written
from kernel.position import Position
from tests.fakes import entry

ASGI = AsgiEncoding(None, level=6)


class Stepwise(AsgiEncoding):
    """An encoding that takes some steps for each message."""

    def __init__(self, steps: int) -> None:
        super().__init__(None, level=6)
        self._steps = steps

    def steps(self, json: bytes, place: Position | None = None) -> Iterator[bytes | str | None]:
        """Encode a message in some steps."""
        yield from [None] * (self._steps - 1)
        yield from super().steps(json)


def events(*types: str) -> list[Frame]:
    """Return the frames of consecutive events of these types."""
    return [Frame.of("e", entry(number, "{}", type=type)) for number, type in enumerate(types, 1)]


def steps(selection: Selection) -> int:
    """Prepare a selection, and return in how many steps."""
    return sum(1 for _ in selection)


@pytest.mark.parametrize("replay", [False, True])
def test_what_passes(replay: bool) -> None:
    """Frames are chosen by the patterns, markers always pass, and events can be marked as replayed."""
    frames = [*events("event", "alert_created", "event"), Frame.gap("e", 4, 5)]
    selection = Selection(frames, Patterns.of(["alert.*"]), ASGI, replay=replay)
    steps(selection)
    assert selection.wanted == [frames[1], frames[3]]
    event, marker = map(json.loads, selection.messages)
    assert (event["sequence"], event.get("replay", False)) == (2, replay)
    assert marker == {"type": "gap", "from": 4, "to": 5}
    assert selection.written.messages == 2


def test_written() -> None:
    """Acks that are wanted and bytes that compression saved are counted."""
    frames = [Frame.of("e", entry(1, '"%s"' % ("x" * 1000), requires_ack=True))]
    encoding = WireEncoding(None, deflate=True, level=6)
    selection = Selection(frames, EVERYTHING, encoding)
    steps(selection)
    saved = frames[0].size - len(selection.messages[0])
    assert saved > 900
    assert selection.written == Written(1, 1, saved)
    assert Selection(frames, Patterns.of([]), encoding).written == Written(0, 0, 0)


def test_a_step_for_each_part_of_the_encoding() -> None:
    """Each part of the work on a message is a step, and messages that were made before take none."""
    frames, encoding = events("event", "event"), Stepwise(5)
    assert steps(Selection(frames, EVERYTHING, encoding)) == 10
    assert steps(Selection(frames, EVERYTHING, encoding)) == 0
    assert steps(Selection(frames, Patterns.of([]), encoding)) <= 1
    assert steps(Selection(frames, EVERYTHING, encoding, replay=True)) == 10


def test_two_selections_share_the_work() -> None:
    """If a message is wanted by several clients at the same time, they make it together."""
    frames, encoding = events("event"), Stepwise(10)
    one, other = Selection(frames, EVERYTHING, encoding), Selection(frames, EVERYTHING, encoding)
    both = list(zip(iter(one), iter(other), strict=False))
    assert len(both) == 5
    assert steps(Selection(frames, EVERYTHING, encoding)) == 0


def test_a_step_for_each_part_of_a_comparison() -> None:
    """Comparing hostile patterns with a long name takes many steps; the same name of another frame takes none."""
    hostile = Patterns.of(["*a" * 126 + f"{number:03}" for number in range(100)])
    frames = [Frame.of("e", entry(number, "{}", type="worker_status", event_type="a" * 300)) for number in (1, 2)]
    needed = steps(Selection(frames[:1], hostile, ASGI))
    assert needed > 25
    both = Selection(frames, hostile, ASGI)
    assert steps(both) <= needed
    assert both.wanted == []

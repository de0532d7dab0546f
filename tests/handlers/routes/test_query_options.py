"""The query options of a WebSocket."""

import pytest

from handlers.routes.query_options import QueryOptions
from kernel.clients import EVERYTHING, Resume


def test_no_options() -> None:
    """Without parameters a client gets all events from now on, as JSON."""
    assert QueryOptions.from_query({}) == (EVERYTHING, None, False, [])


def test_events() -> None:
    """`events` is a comma-separated list of patterns; blanks and empty items are ignored."""
    options = QueryOptions.from_query({"events": " alert.* ,,camera.offline,"})

    assert options == QueryOptions.from_query({"events": "alert.*,camera.offline"})
    assert options.patterns != EVERYTHING
    assert options.problems == []
    assert QueryOptions.from_query({"events": " , "}).patterns == EVERYTHING


@pytest.mark.parametrize(
    ("query", "resume"),
    [
        ({"since": "0"}, Resume("events", 0, None)),
        ({"since": "41"}, Resume("events", 41, None)),
        ({"since": "41", "epoch": ""}, Resume("events", 41, None)),
        ({"since": "41", "epoch": "e" * 256}, Resume("events", 41, "e" * 256)),
    ],
)
def test_resume(query: dict[str, str], resume: Resume) -> None:
    """`since` and `epoch` are the position to resume from."""
    options = QueryOptions.from_query(query)

    assert (options.resume, options.problems) == (resume, [])


@pytest.mark.parametrize(("format", "zlib"), [("json", False), ("zlib", True)])
def test_format(format: str, zlib: bool) -> None:
    """`format` is json or zlib."""
    options = QueryOptions.from_query({"format": format})

    assert (options.zlib, options.problems) == (zlib, [])


@pytest.mark.parametrize("since", ["", "-1", "+1", " 1", "1_000", "1.0", "x", "٣", "9" * 1000])
def test_invalid_since(since: str) -> None:
    """A `since` that is not a decimal number is ignored together with the epoch, and reported once."""
    options = QueryOptions.from_query({"since": since, "epoch": "e" * 300})

    assert options.resume is None
    assert [problem.partition(":")[0] for problem in options.problems] == ["since"]


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ({"epoch": "e"}, "epoch: has no effect without since"),
        ({"since": "1", "epoch": "e" * 257}, "epoch: must be a string of at most 256 characters"),
        ({"format": "xml"}, "format: must be json or zlib"),
        ({"format": ""}, "format: must be json or zlib"),
    ],
)
def test_problems(query: dict[str, str], problem: str) -> None:
    """An invalid parameter counts as absent, and the problem names it."""
    options = QueryOptions.from_query(query)

    assert options.problems == [problem]
    assert (options.resume is None) == ("since" not in query)
    assert options.resume is None or options.resume.epoch is None
    assert not options.zlib


def test_invalid_pattern() -> None:
    """If a pattern is invalid, the client gets all events, and the problem is reported."""
    options = QueryOptions.from_query({"events": "a" * 10_000})

    assert options.patterns == EVERYTHING
    assert [problem.partition(":")[0] for problem in options.problems] == ["events"]

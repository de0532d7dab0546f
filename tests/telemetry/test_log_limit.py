"""The limit of log lines that any client can cause."""

import asyncio
import logging

import pytest

from telemetry import log_limit
from telemetry.log_limit import OncePerMinute


class Lines(logging.Handler):
    """Records lines."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record the text of a line."""
        self.texts.append(record.getMessage())


class Limited:
    """A logger with a limit, whose clock is `now`."""

    def __init__(self, distinct: int = 0) -> None:
        self.now = 1000.0
        self.lines = Lines()
        self.log = logging.Logger("limited", logging.DEBUG)
        self.log.addHandler(self.lines)
        self.log.addFilter(OncePerMinute(distinct=distinct, clock=lambda: self.now))


def test_once_a_minute() -> None:
    """The first line is logged at once; after a minute, the next one has the number of those left out."""
    limited = Limited()
    for number in range(5):
        limited.log.warning("bad request %d", number)
    limited.now += 59.9
    limited.log.warning("bad request %d", 5)
    limited.now += 0.1
    limited.log.warning("bad request %d", 6)
    limited.now += 60
    limited.log.warning("bad request %d", 7)
    assert limited.lines.texts == [
        "bad request 0",
        "bad request 6 (and 5 more in the last minute)",
        "bad request 7",
    ]


def test_kinds() -> None:
    """Lines of different text, level, leading arguments or exceptions do not limit each other; DEBUG is not limited."""
    limited = Limited(distinct=1)
    for _ in range(2):
        limited.log.warning("one %s %s", "a", 1)
        limited.log.warning("one %s %s", "a", 2)
        limited.log.warning("one %s %s", "b", 3)
        limited.log.error("one %s %s", "a", 4)
        limited.log.warning("two")
        limited.log.debug("three")
        for error in (ValueError(), KeyError()):
            limited.log.warning("two", exc_info=error)
        limited.log.warning({"not": "a text"})
    assert limited.lines.texts == [
        "one a 1",
        "one b 3",
        "one a 4",
        "two",
        "three",
        "two",
        "two",
        "{'not': 'a text'}",
        "three",
    ]


def test_many_kinds() -> None:
    """Beyond 100 kinds, lines are no longer told apart."""
    limited = Limited(distinct=1)
    for number in range(1000):
        limited.log.warning("%d", number)
    assert len(limited.lines.texts) == 101


class TestOnALoop:
    """On an event loop, lines that were left out are logged when the minute is over."""

    @pytest.fixture(autouse=True)
    def short_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Shorten the minute."""
        monkeypatch.setattr(log_limit, "LIMIT_SECONDS", 0.05)

    async def test_report(self) -> None:
        """The newest is logged with the number, once."""
        limited = Limited()
        logger = logging.getLogger("limited")
        logger.addHandler(limited.lines)
        try:
            for number in range(4):
                limited.log.warning("bad request %d", number)
            await asyncio.sleep(0.2)
        finally:
            logger.removeHandler(limited.lines)
        assert limited.lines.texts == ["bad request 0", "bad request 1 (3 times in the last minute)"]

    async def test_next_line_first(self) -> None:
        """If a line comes first after the minute, it has the number, and the report is not needed."""
        limited = Limited()
        limited.log.warning("bad request")
        limited.log.warning("bad request")
        limited.now += 1
        limited.log.warning("bad request")
        await asyncio.sleep(0.2)
        assert limited.lines.texts == ["bad request", "bad request (and 1 more in the last minute)"]

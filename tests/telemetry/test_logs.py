"""Log output: one line per entry, as text or JSON, with the ids of the current span."""

import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider

from telemetry import configure_logging

NAMES = ("", "a", "uvicorn", "uvicorn.error", "uvicorn.access")


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """Return a function that returns the lines logged since its last call; logging is restored after the test."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(list(logger.handlers), list(logger.filters), logger.propagate, logger.level) for logger in loggers]

    def read() -> list[str]:
        for handler in logging.getLogger().handlers:
            handler.flush()
        return capfd.readouterr().err.rstrip("\n").split("\n")

    yield read
    logging.captureWarnings(False)
    for logger, (handlers, filters, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
        logger.setLevel(level)


def test_json(lines: Callable[[], list[str]]) -> None:
    """A JSON entry has time, level, logger and message, and no trace ids outside a span."""
    configure_logging("INFO", "json")
    logging.getLogger("kernel.resilience.link").warning("circuit %s", 'closed\nand "so on" \u2028 ü')
    logging.getLogger("kernel.resilience.link").debug("not this")
    (line,) = lines()
    entry = json.loads(line)
    assert entry.keys() == {"time", "level", "logger", "message"}
    assert (entry["level"], entry["logger"]) == ("WARNING", "kernel.resilience.link")
    assert entry["message"] == 'circuit closed\nand "so on" \u2028 ü'
    assert entry["time"].endswith("Z")
    assert len(entry["time"]) == len("2026-01-31T12:00:00.000Z")


def test_text(lines: Callable[[], list[str]]) -> None:
    """A text entry is one line, even if the message contains line breaks."""
    configure_logging("INFO", "text")
    logging.getLogger("kernel.resilience.link").warning("one\ntwo\r\nthree \u2028 four")
    (line,) = lines()
    assert line.partition(" ")[2] == "WARNING kernel.resilience.link: one two three   four"


@pytest.mark.parametrize("format", ["json", "text"])
def test_traces(lines: Callable[[], list[str]], format: str) -> None:
    """An entry that is logged within a span has the span's ids."""
    configure_logging("INFO", format)
    with TracerProvider(shutdown_on_exit=False).get_tracer("t").start_as_current_span("s") as span:
        logging.getLogger("a").info("x")
    context = span.get_span_context()
    (line,) = lines()
    ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    if format == "json":
        assert ids.items() <= json.loads(line).items()
    else:
        assert line.endswith(f" INFO a: x [trace_id={ids['trace_id']} span_id={ids['span_id']}]")


@pytest.mark.parametrize("format", ["json", "text"])
def test_errors(lines: Callable[[], list[str]], format: str) -> None:
    """A traceback is in the same line as the message that it belongs to, with all exceptions of a chain."""
    configure_logging("INFO", format)
    try:
        try:
            raise OSError(5, "disk\nfailed")
        except OSError as error:
            raise ZeroDivisionError from error
    except ZeroDivisionError:
        logging.getLogger("a").exception("failed")
    (line,) = lines()
    error = json.loads(line)["error"] if format == "json" else line
    assert error.count("Traceback (most recent call last):") == 2
    assert error.count("test_logs.py") == 2
    assert re.search(r"OSError: \[Errno 5\] disk.*ZeroDivisionError$", error, re.DOTALL)


def test_no_payloads_in_tracebacks(lines: Callable[[], list[str]]) -> None:
    """The text of an exception, which may quote what a client has sent, is left out."""
    configure_logging("INFO", "text")
    payload = "SECRET"
    try:
        try:
            raise KeyError(payload)
        except KeyError:
            raise ValueError(payload)  # noqa: B904
    except ValueError:
        logging.getLogger("a").exception("failed")
    (line,) = lines()
    assert "SECRET" not in line
    assert line.endswith("ValueError")
    assert "KeyError" in line


def test_wrong_arguments(lines: Callable[[], list[str]]) -> None:
    """An entry that cannot be formatted is replaced by its place, without its arguments."""
    configure_logging("INFO", "text")
    logging.getLogger("a").warning("%d", "SECRET")
    (line,) = lines()
    assert re.search(r"WARNING telemetry.log_writer: a log entry of \S+test_logs.py:\d+ cannot be formatted$", line)


def test_limited_loggers(lines: Callable[[], list[str]]) -> None:
    """Lines that any client can cause are logged once a minute for each kind."""
    configure_logging("INFO", "text", {"a": 1})
    for name in ("a", "uvicorn.error", "b"):
        for number in (1, 1, 2):
            logging.getLogger(name).warning("line %d", number)
    assert [line.partition("WARNING ")[2] for line in lines()] == [
        "a: line 1",
        "a: line 2",
        "uvicorn.error: line 1",
        "b: line 1",
        "b: line 1",
        "b: line 2",
    ]


def test_without_stderr(lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without stderr logs nothing."""
    monkeypatch.setattr(sys, "__stderr__", None)
    configure_logging("INFO", "text")
    logging.getLogger("a").warning("line")
    assert lines() == [""]


def test_uvicorn_too(lines: Callable[[], list[str]]) -> None:
    """Uvicorn's own entries have the same format as all others, and are written once."""
    for name in NAMES[2:]:
        logging.getLogger(name).addHandler(logging.StreamHandler(sys.stderr))
    configure_logging("INFO", "json")
    for name in NAMES[2:]:
        logging.getLogger(name).info("here")
    assert [json.loads(line)["logger"] for line in lines()] == list(NAMES[2:])


def test_warnings_too(lines: Callable[[], list[str]]) -> None:
    """Python's warnings are logged in the same format as all other entries."""
    configure_logging("INFO", "json")
    warnings.showwarning("old", DeprecationWarning, "here.py", 7)
    (line,) = lines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"]) == ("WARNING", "py.warnings")
    assert "here.py:7: DeprecationWarning: old" in entry["message"]

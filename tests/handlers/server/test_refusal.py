"""Refused requests: their answers, and how seldom they are logged."""

import asyncio
import json
from http import HTTPStatus

import pytest

from handlers.server import refusal
from handlers.server.refusal import Refusal, RefusalLog


def test_an_answer() -> None:
    """A refusal is answered with a problem document, and closes the connection."""
    refused = Refusal(HTTPStatus.BAD_REQUEST, "No.", [(b"sec-websocket-version", b"13")])
    head, _, body = refused.answer([(b"date", b"today")]).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 400 Bad Request",
        b"date: today",
        b"content-type: application/problem+json",
        b"content-length: %d" % len(body),
        b"connection: close",
        b"sec-websocket-version: 13",
    ]
    assert json.loads(body) == {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "No."}


async def test_one_line_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The first refused request is logged at once, those that follow in one line with their number."""
    monkeypatch.setattr(refusal, "LOG_SECONDS", 0.05)
    log = RefusalLog()
    for number in range(10):
        log.add(Refusal(HTTPStatus.REQUEST_TIMEOUT, f"reason {number}"))
    assert [record.getMessage().split()[1] for record in caplog.records] == ["1"]
    async with asyncio.timeout(10):
        while len(caplog.records) < 2:
            await asyncio.sleep(0.01)
    assert caplog.records[1].getMessage().split()[1] == "9"
    assert caplog.records[1].getMessage().endswith("408 reason 9")
    await asyncio.sleep(0.2)
    assert len(caplog.records) == 2
    log.add(Refusal(HTTPStatus.REQUEST_TIMEOUT, "later"))
    assert len(caplog.records) == 3

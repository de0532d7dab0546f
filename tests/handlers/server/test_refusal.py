"""Refused requests: their answers, and how seldom they are logged."""

import json
from http import HTTPStatus

from handlers.server.refusal import Refusal


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

"""Answers to requests that are refused before they reach the application."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final, Self

import msgspec
from litestar.types import Send

from handlers.problems import PROBLEM_JSON, Problem

__all__ = ["ANSWER_HEADERS", "Headers", "Refusal", "problem", "problem_body", "refuse"]

Headers = Sequence[tuple[bytes, bytes]]

ANSWER_HEADERS: Final = "handlers.answer_headers"
"""Key of an ASGI scope: headers that the server adds to an answer that it gives in place of the application."""

_encode: Final = msgspec.json.Encoder().encode


class Refusal(Exception):
    """A request that is refused; `detail` tells the client why, `headers` are added to the answer."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self._headers = headers

    @classmethod
    def invalid(cls, reason: str) -> Self:
        """Return the refusal of something that is not HTTP."""
        return cls(HTTPStatus.BAD_REQUEST, f"This is not a valid HTTP request: {reason}.")

    def answer(self, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return the whole answer, a problem document after which the connection is closed."""
        body, described = problem(self.status, self.detail)
        fields = [*default_headers, *described, (b"connection", b"close"), *self._headers]
        lines = [b"HTTP/1.1 %d %s" % (self.status, self.status.phrase.encode())]
        lines += [name + b": " + value for name, value in fields]
        return b"\r\n".join([*lines, b"", body])


async def refuse(scope: Any, send: Send, status: HTTPStatus, detail: str, headers: Headers = ()) -> None:  # noqa: ANN401  ASGI
    """Answer an HTTP request or a WebSocket upgrade with a problem document, over ASGI.

    If the server lacks ASGI's `websocket.http.response`, an upgrade is refused by a close, which the server turns into
    a status of its own.
    """
    is_upgrade = scope["type"] == "websocket"
    if is_upgrade and "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1013, "reason": ""})
        return
    body, described = problem(status, detail)
    fields = [*described, *headers]
    # After this answer to `Expect`, the client may leave the body out; its next request would be taken for the body.
    if is_upgrade or any(name == b"expect" for name, _ in scope["headers"]):
        fields.append((b"connection", b"close"))
    if is_upgrade:
        await send({"type": "websocket.http.response.start", "status": status.value, "headers": fields})
        await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
    else:
        await send({"type": "http.response.start", "status": status.value, "headers": fields})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def problem(status: HTTPStatus, detail: str) -> tuple[bytes, Headers]:
    """Return the problem document of an error, and the headers that describe it."""
    body = problem_body(status, detail)
    return body, [(b"content-type", PROBLEM_JSON.encode()), (b"content-length", b"%d" % len(body))]


def problem_body(status: HTTPStatus, detail: str) -> bytes:
    """Return the problem document of an error."""
    return _encode(Problem(type="about:blank", title=status.phrase, status=status.value, detail=detail))

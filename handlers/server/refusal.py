"""Answers to requests that are refused before they reach the application."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, Self

import msgspec

from handlers.problems import PROBLEM_JSON, Problem

__all__ = ["Refusal", "problem_body"]

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
        body = problem_body(self.status, self.detail)
        fields = [
            *default_headers,
            (b"content-type", PROBLEM_JSON.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *self._headers,
        ]
        lines = [b"HTTP/1.1 %d %s" % (self.status, self.status.phrase.encode())]
        lines += [name + b": " + value for name, value in fields]
        return b"\r\n".join([*lines, b"", body])


def problem_body(status: HTTPStatus, detail: str) -> bytes:
    """Return the problem document of an error."""
    return _encode(Problem(type="about:blank", title=status.phrase, status=status.value, detail=detail))

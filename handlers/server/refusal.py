"""Requests that are refused before they reach the application: their answers, and one log line a minute about them."""

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, Self

import msgspec

from handlers.problems import PROBLEM_JSON, Problem

__all__ = ["Refusal", "RefusalLog", "problem_body"]

LOG_SECONDS: Final = 60.0
"""The shortest time between two log lines about refused requests."""

_logger = logging.getLogger(__name__)
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


class RefusalLog:
    """Logs refused requests: the first at once, those that follow as one line a minute with their number.

    Any client can cause such requests, so there must be fewer log lines than requests.
    """

    def __init__(self) -> None:
        self._count = 0
        self._newest: Refusal | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, refusal: Refusal) -> None:
        """Count a refused request, and log it unless a line was logged within the last minute."""
        self._count += 1
        self._newest = refusal
        if self._timer is None:
            self._write()

    def _write(self) -> None:
        self._timer = None
        if self._newest is not None:
            text = "refused %d HTTP requests that were invalid or over a limit (at most one such line a minute): %d %s"
            _logger.warning(text, self._count, self._newest.status, self._newest.detail)
            self._count, self._newest = 0, None
            self._timer = asyncio.get_running_loop().call_later(LOG_SECONDS, self._write)

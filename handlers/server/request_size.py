"""Limits on the size of a request, other than of its body, which the application limits.

A head that is complete is measured exactly, unless it is part of a segment that is too small to exceed a limit. While a
request is incomplete, the bytes that have been fed to the parser are counted instead: the parser keeps an incomplete
field, however large, and skips chunk extensions in silence. The bytes of the segment in which a request or its body
begins are not counted, so the limits may be exceeded by the size of a segment.
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from handlers.server.refusal import Refusal

__all__ = ["MAX_FIELD_BYTES", "MAX_TARGET_BYTES", "RequestSize", "check_fields", "check_target"]

MAX_TARGET_BYTES: Final = 64_000
"""The longest request target. httptools cannot parse one of 65,536 bytes."""

MAX_FIELD_BYTES: Final = 64 * 1024
"""The most bytes of header fields of one request, and the most of its trailers and chunk extensions."""

_FIELD_OVERHEAD: Final = len(b": \r\n")
# The largest segment whose fields need not be measured. A field counts for less than twice its bytes: one of three
# bytes, without a space and a carriage return, counts for five.
_SMALL_BYTES: Final = MAX_FIELD_BYTES // 2
_FRAMING_PER_BODY_BYTE: Final = 16  # of the chunked encoding; chunks of one byte need 5


def check_target(target: bytes) -> None:
    """Raise Refusal if a request target, or a part of it, is too long."""
    if len(target) > MAX_TARGET_BYTES:
        detail = f"The request target must not be longer than {MAX_TARGET_BYTES} bytes."
        raise Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, detail)


def check_fields(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise Refusal if header fields or trailers are too large."""
    if sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in fields) > MAX_FIELD_BYTES:
        raise _fields_too_large()


class RequestSize:
    """Counts the bytes of a request that is incomplete."""

    __slots__ = ("_body", "_fed", "_segment")

    def __init__(self) -> None:
        self._segment = 0
        self.begin()

    @property
    def is_small(self) -> bool:
        """True if a head that ends in the present segment began in it too, and cannot exceed a limit."""
        return self._fed == 0 and self._segment <= _SMALL_BYTES

    def begin(self) -> None:
        """Start to count a new head or body."""
        self._fed = self._body = 0

    def feed(self, size: int) -> None:
        """Count a segment that is about to be fed to the parser."""
        self._segment = size
        self._fed += size

    def add_body(self, size: int) -> None:
        """Count bytes of the body that the parser has reported."""
        self._body += size

    def check_head(self, target: bytes) -> None:
        """Raise Refusal if an incomplete head, with this target so far, is too large."""
        check_target(target)
        if self._fed - len(target) > MAX_FIELD_BYTES:
            raise _fields_too_large()

    def check_body(self) -> None:
        """Raise Refusal if what is not the body itself, in an incomplete body, is too large."""
        if self._fed - self._body > MAX_FIELD_BYTES + _FRAMING_PER_BODY_BYTE * self._body:
            raise _fields_too_large()


def _fields_too_large() -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        f"Header fields, trailers and chunk extensions must not be larger than {MAX_FIELD_BYTES} bytes.",
    )

"""Read a publish request: check its headers, and return its body and its publish options.

The checks come in this order, and the first that fails is answered: API key (401), media type and encoding (415), size
(413), size of all bodies in flight (503), idempotency key (400). An invalid trace context is ignored, as W3C Trace
Context requires.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn, cast

from litestar import Request
from litestar.exceptions import ClientException, HTTPException, ServiceUnavailableException
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE, HTTP_415_UNSUPPORTED_MEDIA_TYPE
from litestar.types import HTTPReceiveMessage, Receive

from handlers.auth import require_api_key
from kernel import PublishOptions

__all__ = ["API_KEYS", "BODY_BUDGET", "MAX_BODY_BYTES", "BodyBudget", "BodyShare", "read_publish"]

API_KEYS: Final = "api_keys"
"""Router option: the API keys that are accepted, as bytes; empty if none is needed."""

MAX_BODY_BYTES: Final = "max_body_bytes"
"""Router option: the size of the largest body, in bytes."""

BODY_BUDGET: Final = "body_budget"
"""Router option: the `BodyBudget` of all publish routes."""

_MEDIA_TYPE: Final = re.compile(rb"application/(?:[!#$%&'*+.^_`|~0-9a-z-]+\+)?json[ \t]*(?:;(.*))?", re.DOTALL)
_CHARSET: Final = re.compile(rb"""(?:^|;)[ \t]*charset=["']?([^\s;"']*)""")
_IDEMPOTENCY_KEY: Final = re.compile(rb"[!-~]{1,128}")
# In version 00 nothing follows the flags. Later versions may append fields; the first ones keep their meaning.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)
_TRACESTATE_BYTES: Final = 512  # W3C Trace Context, 3.3.1.5: the length that must at least be propagated
_BAGGAGE_BYTES: Final = 8192  # W3C Baggage, 3.3.2: the same for baggage

_SHOWN_BYTES: Final = 100  # of a refused content type, in the error

_NO_OPTIONS: Final = PublishOptions(validated=True)


class BodyBudget:
    """Limits how many bytes of bodies all publishes in flight hold together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class BodyShare:
    """The share of one publish in the budget, from the first byte of its body until `release`."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._size = 0

    def take(self, size: int) -> None:
        """Take this many bytes more; raises ServiceUnavailableException if there are not that many."""
        if self._budget.used + size > self._budget.limit:
            raise ServiceUnavailableException(
                f"The publishes in flight hold {self._budget.limit} bytes; more are accepted once some of them are "
                "answered. Nothing was published."
            )
        self._budget.used += size
        self._size += size

    def release(self) -> None:
        """Return the whole share to the budget."""
        self._budget.used -= self._size
        self._size = 0


async def read_publish(request: Request[Any, Any, Any], share: BodyShare) -> tuple[bytes, PublishOptions]:
    """Return the body of a publish request, which `share` accounts for, and the options in its headers.

    The options of the route's router must have `API_KEYS` and `MAX_BODY_BYTES`. Raises HTTPException with status 400,
    401, 413, 415 or 503.
    """
    scope = request.scope
    limits = scope["route_handler"].opt
    headers = _combined(scope["headers"])
    require_api_key(headers.items(), limits[API_KEYS])
    _check_media_type(headers)
    body = await _body(request.receive, headers, limits[MAX_BODY_BYTES], share)
    return body, _options(scope["path"], headers)


def _combined(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers as a dict; several of one name are joined by commas (RFC 9110, 5.3)."""
    pairs = list(raw)
    headers = dict(pairs)
    if len(headers) == len(pairs):
        return headers
    headers = {}
    for name, value in pairs:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _check_media_type(headers: dict[bytes, bytes]) -> None:
    # A missing type is refused too: a web page of another origin could send such a request without a CORS preflight.
    content_type = headers.get(b"content-type", b"")
    if content_type != b"application/json":
        parsed = _MEDIA_TYPE.fullmatch(content_type.strip().lower())
        if parsed is None:
            given = f"not {content_type[:_SHOWN_BYTES].decode('latin-1')!r}" if content_type else "and there is none"
            _unsupported(f"The body must be JSON, {given}: send the header 'Content-Type: application/json'.")
        charset = _CHARSET.search(parsed[1] or b"")
        if charset is not None and charset[1] not in (b"utf-8", b"utf8", b"us-ascii"):
            _unsupported("The body must be UTF-8: leave the charset out of the Content-Type header.")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        _unsupported("The body must not be compressed: send it without a Content-Encoding header.")


def _unsupported(detail: str) -> NoReturn:
    raise HTTPException(status_code=HTTP_415_UNSUPPORTED_MEDIA_TYPE, detail=detail)


async def _body(receive: Receive, headers: dict[bytes, bytes], limit: int, share: BodyShare) -> bytes:
    """Read the body, at most one chunk beyond the limit; if Content-Length exceeds the limit, read nothing.

    The server skips the rest of the body. Closing the connection instead would reset it, and the client would not see
    the answer. Litestar's `request.body()` also has a limit, but costs half as much as a whole empty route.
    """
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit:
        _too_large(limit)
    chunks = []
    size = 0
    while True:
        message = cast("HTTPReceiveMessage", await receive())
        if message["type"] == "http.disconnect":
            raise ClientException("The client left before the body was complete.")
        chunk = message["body"]
        size += len(chunk)
        if size > limit:
            _too_large(limit)
        share.take(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(limit: int) -> NoReturn:
    raise HTTPException(
        status_code=HTTP_413_REQUEST_ENTITY_TOO_LARGE, detail=f"The body must not be larger than {limit} bytes."
    )


def _options(path: str, headers: dict[bytes, bytes]) -> PublishOptions:
    key = headers.get(b"idempotency-key")
    if key is not None:
        key = key.strip(b" \t")  # not part of the value (RFC 9110, 5.5), but the server keeps it at the end
    parent = headers.get(b"traceparent")
    if key is None and parent is None:
        return _NO_OPTIONS
    if key is not None and _IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise ClientException("The Idempotency-Key header must have 1 to 128 visible ASCII characters.")
    idempotency_key = None if key is None else f"{path} {key.decode()}"
    traceparent = None if parent is None else _traceparent(parent)
    if traceparent is None:
        return PublishOptions(idempotency_key=idempotency_key, validated=True)
    return PublishOptions(
        idempotency_key=idempotency_key,
        traceparent=traceparent,
        tracestate=_text(headers.get(b"tracestate"), _TRACESTATE_BYTES),
        baggage=_text(headers.get(b"baggage"), _BAGGAGE_BYTES),
        validated=True,
    )


def _traceparent(value: bytes) -> str | None:
    parsed = _TRACEPARENT.fullmatch(value.strip())
    if parsed is None or (parsed[1] == b"00" and parsed[3]):
        return None
    return f"00{parsed[2].decode()}"


def _text(value: bytes | None, most: int) -> str | None:
    return value.decode() if value and len(value) <= most and value.isascii() else None

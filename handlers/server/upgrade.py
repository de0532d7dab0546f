"""Requests that ask for an upgrade: which of them becomes a WebSocket, which is refused, and which is served as it is.

An upgrade to any other protocol is ignored (RFC 9110, 7.8). Java's HttpClient and `curl --http2` ask for `h2c` with an
ordinary request.
"""

from http import HTTPStatus
from typing import Final

from handlers.server.refusal import Refusal

__all__ = ["Headers", "asks_for_websocket", "head_without_upgrade", "websocket_headers"]

Headers = list[tuple[bytes, bytes]]

_VERSION: Final = b"13"
# The WebSocket library takes up to 4 µs for each byte of these headers; browsers send some 50 bytes.
_MOST_EXTENSIONS: Final = 1024
_MOST_SUBPROTOCOLS: Final = 16 * 1024  # one of them may be a credential


def asks_for_websocket(method: bytes, version: str, headers: Headers) -> bool:
    """Return True if a request that asks for an upgrade is to become a WebSocket, False if its upgrade is ignored.

    Raises Refusal for a WebSocket handshake that is not valid, and for CONNECT, which httptools takes for an upgrade.
    """
    if method == b"CONNECT":
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "This is not a proxy.", [(b"allow", b"GET, POST")])
    protocols = [token.strip().lower() for token in b",".join(_values(headers, b"upgrade")).split(b",")]
    if b"websocket" not in protocols or version != "1.1":  # HTTP/1.0 has no upgrades (RFC 9110, 7.8)
        return False
    has_body = _values(headers, b"transfer-encoding") or set(_values(headers, b"content-length")) - {b"0"}
    if method != b"GET" or has_body:
        raise Refusal(HTTPStatus.BAD_REQUEST, "An upgrade to a WebSocket must be a GET request without a body.")
    if _values(headers, b"sec-websocket-version") != [_VERSION]:
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            "This WebSocket server supports version 13: send the header 'Sec-WebSocket-Version: 13'.",
            [(b"sec-websocket-version", _VERSION)],
        )
    if _size(headers, b"sec-websocket-protocol") > _MOST_SUBPROTOCOLS:
        detail = f"Sec-WebSocket-Protocol must not be larger than {_MOST_SUBPROTOCOLS} bytes."
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
    return True


def websocket_headers(headers: Headers) -> Headers:
    """Return the headers of a WebSocket handshake as the WebSocket library reads them.

    It accepts no other protocol beside. Offers of extensions that are longer than any client's are left out: a server
    may decline them.
    """
    left_out = [b"upgrade", b"connection"]
    if _size(headers, b"sec-websocket-extensions") > _MOST_EXTENSIONS:
        left_out.append(b"sec-websocket-extensions")
    kept = [(name, value) for name, value in headers if name not in left_out]
    return [*kept, (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]


def head_without_upgrade(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """Return the head of a request without its Upgrade headers."""
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    lines += [name + b": " + value for name, value in headers if name != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value.strip() for present, value in headers if present == name]


def _size(headers: Headers, name: bytes) -> int:
    return sum(len(value) for present, value in headers if present == name)

"""Which upgrades become a WebSocket, which are refused, and which are ignored."""

import pytest

from handlers.server.refusal import Refusal
from handlers.server.upgrade import Headers, asks_for_websocket, head_without_upgrade, websocket_headers

HANDSHAKE: Headers = [(b"host", b"h"), (b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]


@pytest.mark.parametrize("protocols", [[b"websocket"], [b"WebSocket"], [b"h2c, websocket"], [b"h2c", b"websocket"]])
def test_a_websocket(protocols: list[bytes]) -> None:
    """A GET without a body that names the WebSocket, in any case and among others, becomes one."""
    headers = [*HANDSHAKE[2:], *((b"upgrade", protocol) for protocol in protocols)]
    assert asks_for_websocket(b"GET", "1.1", headers)
    assert [value for name, value in websocket_headers(headers) if name == b"upgrade"] == [b"websocket"]


@pytest.mark.parametrize(
    ("version", "protocol"), [("1.0", b"websocket"), ("1.1", b"h2c"), ("1.1", b""), ("1.1", b"websocket/13")]
)
def test_ignored(version: str, protocol: bytes) -> None:
    """Any other protocol is ignored, and so is an upgrade in HTTP/1.0."""
    headers = [*HANDSHAKE[2:], (b"upgrade", protocol)]
    assert not asks_for_websocket(b"POST", version, headers)
    head = head_without_upgrade(b"POST", b"/path?query", version, headers)
    assert head == b"POST /path?query HTTP/%s\r\nsec-websocket-version: 13\r\n\r\n" % version.encode()


@pytest.mark.parametrize(
    ("method", "header", "status"),
    [
        (b"POST", (b"x", b"y"), 400),
        (b"GET", (b"content-length", b"1"), 400),
        (b"GET", (b"transfer-encoding", b"chunked"), 400),
        (b"GET", (b"sec-websocket-version", b"13"), 400),
        (b"CONNECT", (b"x", b"y"), 405),
    ],
)
def test_refused(method: bytes, header: tuple[bytes, bytes], status: int) -> None:
    """A handshake that is not valid is refused."""
    with pytest.raises(Refusal) as refused:
        asks_for_websocket(method, "1.1", [*HANDSHAKE, header])
    assert refused.value.status == status


def test_long_headers() -> None:
    """The WebSocket library takes up to 4 µs for each byte of these headers, so it gets none that is long."""
    connection, extensions = (
        (b"connection", b"keep-alive, Upgrade"),
        (b"sec-websocket-extensions", b"permessage-deflate"),
    )
    read = websocket_headers([*HANDSHAKE, connection, extensions])
    assert read == [HANDSHAKE[0], HANDSHAKE[2], extensions, (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]
    read = websocket_headers([*HANDSHAKE, (b"connection", b"a," * 30_000 + b"Upgrade"), extensions, *[extensions] * 60])
    assert read == [HANDSHAKE[0], HANDSHAKE[2], (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]


@pytest.mark.parametrize(("size", "taken"), [(16 * 1024, True), (16 * 1024 + 1, False)])
def test_long_subprotocols(size: int, taken: bool) -> None:
    """A credential has room among the subprotocols; more than that is refused."""
    headers = [*HANDSHAKE, (b"sec-websocket-protocol", b"p" * (size - 8)), (b"sec-websocket-protocol", b"12345678")]
    if taken:
        assert asks_for_websocket(b"GET", "1.1", headers)
    else:
        with pytest.raises(Refusal) as refused:
            asks_for_websocket(b"GET", "1.1", headers)
        assert refused.value.status == 431


def test_a_length_of_nothing() -> None:
    """Some devices announce a body of 0 bytes."""
    assert asks_for_websocket(b"GET", "1.1", [*HANDSHAKE, (b"content-length", b"0")])

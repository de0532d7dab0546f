"""Encodings: how a client wants its messages, as bytes that a sink takes as they are.

`WireEncoding` makes RFC 6455 frames, which all clients with the same encoding share because server frames are not
masked; with `permessage-deflate` (RFC 7692) and `format=zlib` where they are agreed. `AsgiEncoding` makes plain ASGI
messages, for servers that cannot write prebuilt frames.
"""

import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from struct import Struct
from typing import Protocol, TypeAlias

import msgspec

from kernel.messages.control import Control
from kernel.position import Position

__all__ = ["WINDOW_BITS", "AsgiEncoding", "Encoding", "Joined", "Ready", "WireEncoding"]

# The LZ77 window of the shared permessage-deflate variant: what the `websockets` library asks for, and browsers take.
WINDOW_BITS = 12
# Shorter messages would not get smaller.
_LEAST_DEFLATED = 128
# How many bytes are compressed in one step. That takes 50 µs, and 6 ms for the worst data at the highest level.
_PIECE = 2048

_TEXT, _BINARY, _COMPRESSED = 0x81, 0x82, 0x40
# Heads of frames, by how long the payload is.
_SHORT, _MIDDLE, _LONG = Struct("!BB"), Struct("!BBH"), Struct("!BBQ")

Ready: TypeAlias = bytes | str | tuple[object, ...]
"""One message, ready to be joined; a tuple where it is collected instead of written to a socket."""

Joined: TypeAlias = bytes | Sequence[Ready]
"""What a sink takes in one write: wire bytes, or messages in their order."""

encode_json = msgspec.json.Encoder().encode


class Encoding(Protocol):
    """The encoding of a client's messages; equal for clients that can share them."""

    @property
    def kind(self) -> str:
        """A short name, with which the ids of its clients begin."""
        ...

    @property
    def compresses(self) -> bool:
        """True if some messages get smaller than their JSON."""
        ...

    @property
    def two_way(self) -> bool:
        """True if clients can send acks, and are told by the close why their connection is closed."""
        ...

    @property
    def marks_replay(self) -> bool:
        """True if replayed events have `"replay": true`."""
        ...

    def encode(self, json: bytes, place: Position) -> Ready:
        """Return the message of an event; `place` is the event's position."""
        ...

    def steps(self, json: bytes, place: Position) -> Iterator[Ready | None]:
        """Do the work of `encode` in steps of about a millisecond at most; the last value is the message."""
        ...

    def encode_control(self, control: Control, place: Position | None = None) -> Ready:
        """Return a control message; `place`, if given, is where a client stands that has got it."""
        ...

    def join(self, messages: Iterable[Ready]) -> Joined:
        """Return several ready messages as one write."""
        ...


class WireEncoding:
    """RFC 6455 frames.

    Messages of `zlib_from` bytes and more become binary frames of 0x00 and a zlib stream (None: never). `deflate` says
    that permessage-deflate without context takeover was agreed. `level` is zlib's, 1 to 9.
    """

    __slots__ = ("_deflate", "_level", "_zlib_from", "compresses")
    kind = "ws"
    two_way = marks_replay = True

    def __init__(self, zlib_from: int | None, *, deflate: bool, level: int) -> None:
        self.compresses = deflate or zlib_from is not None
        self._zlib_from = zlib_from
        self._deflate = deflate
        self._level = level

    def encode(self, json: bytes, place: Position | None = None) -> bytes:
        """Return one message as one unfragmented frame."""
        *_, frame = self.steps(json)
        assert frame is not None
        return frame

    def steps(self, json: bytes, place: Position | None = None) -> Iterator[bytes | None]:
        """Do the work of `encode` in steps; the last value is the frame."""
        if self._zlib_from is not None and len(json) >= self._zlib_from:
            return self._zlib_steps(json)
        if self._deflate and len(json) >= _LEAST_DEFLATED:
            return self._deflate_steps(json)
        return iter((_framed(_TEXT, json),))

    def _zlib_steps(self, json: bytes) -> Iterator[bytes | None]:
        yield _framed(_BINARY, (yield from _zlibbed(json, self._level)))

    def _deflate_steps(self, json: bytes) -> Iterator[bytes | None]:
        # RFC 7692 section 7.2.1: the empty block at the end is left out
        deflated = (yield from _compressed(json, self._level, -WINDOW_BITS, zlib.Z_SYNC_FLUSH))[:-4]
        yield _framed(_TEXT | _COMPRESSED, deflated) if len(deflated) < len(json) else _framed(_TEXT, json)

    def encode_control(self, control: Control, place: Position | None = None) -> bytes:
        """Return a control message as one unfragmented frame."""
        return self.encode(encode_json(control))

    def join(self, messages: Iterable[Ready]) -> bytes:
        """Return several ready messages as one write."""
        return b"".join(messages)  # type: ignore[arg-type]  # this encoding makes bytes only


class AsgiEncoding:
    """Messages for ASGI's `send`: str for text, bytes for binary."""

    __slots__ = ("_level", "_zlib_from", "compresses")
    kind = "ws"
    two_way = marks_replay = True

    def __init__(self, zlib_from: int | None, *, level: int) -> None:
        self.compresses = zlib_from is not None
        self._zlib_from = zlib_from
        self._level = level

    def encode(self, json: bytes, place: Position | None = None) -> bytes | str:
        """Return the payload of one message."""
        *_, payload = self.steps(json)
        assert payload is not None
        return payload

    def steps(self, json: bytes, place: Position | None = None) -> Iterator[bytes | str | None]:
        """Do the work of `encode` in steps; the last value is the payload."""
        if self._zlib_from is not None and len(json) >= self._zlib_from:
            yield (yield from _zlibbed(json, self._level))
        else:
            yield json.decode()

    def encode_control(self, control: Control, place: Position | None = None) -> bytes | str:
        """Return the payload of a control message."""
        return self.encode(encode_json(control))

    def join(self, messages: Iterable[Ready]) -> list[Ready]:
        """Return several ready messages as one write."""
        return list(messages)


def _zlibbed(json: bytes, level: int) -> Generator[None, None, bytes]:
    return b"\x00" + (yield from _compressed(json, level, zlib.MAX_WBITS, zlib.Z_FINISH))


def _compressed(json: bytes, level: int, window_bits: int, flush: int) -> Generator[None, None, bytes]:
    """Compress in steps; return the same bytes as if it were done at once."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, window_bits)
    rest = memoryview(json)
    parts = [compressor.compress(rest[:_PIECE])]
    while rest := rest[_PIECE:]:
        yield
        parts.append(compressor.compress(rest[:_PIECE]))
    parts.append(compressor.flush(flush))
    return b"".join(parts)


def _framed(first: int, payload: bytes) -> bytes:
    """Return one final, unmasked frame (RFC 6455, section 5.2)."""
    length = len(payload)
    if length < 126:
        return _SHORT.pack(first, length) + payload
    if length < 65536:
        return _MIDDLE.pack(first, 126, length) + payload
    return _LONG.pack(first, 127, length) + payload

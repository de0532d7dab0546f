"""Encodings: how a client wants its messages, as bytes that a sink takes as they are.

`WireEncoding` makes RFC 6455 frames, which all clients with the same encoding share because server frames are not
masked; with `permessage-deflate` (RFC 7692) and `format=zlib` where they are agreed. `AsgiEncoding` makes plain ASGI
messages, for servers that cannot write prebuilt frames.
"""

import zlib
from collections.abc import Iterable, Sequence
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
        if self._zlib_from is not None and len(json) >= self._zlib_from:
            return _framed(_BINARY, _zlibbed(json, self._level))
        if self._deflate and len(json) >= _LEAST_DEFLATED:
            compressor = zlib.compressobj(self._level, zlib.DEFLATED, -WINDOW_BITS)
            # RFC 7692 section 7.2.1: the empty block at the end is left out
            deflated = (compressor.compress(json) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            if len(deflated) < len(json):
                return _framed(_TEXT | _COMPRESSED, deflated)
        return _framed(_TEXT, json)

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
        if self._zlib_from is not None and len(json) >= self._zlib_from:
            return _zlibbed(json, self._level)
        return json.decode()

    def encode_control(self, control: Control, place: Position | None = None) -> bytes | str:
        """Return the payload of a control message."""
        return self.encode(encode_json(control))

    def join(self, messages: Iterable[Ready]) -> list[Ready]:
        """Return several ready messages as one write."""
        return list(messages)


def _zlibbed(json: bytes, level: int) -> bytes:
    return b"\x00" + zlib.compress(json, level)


def _framed(first: int, payload: bytes) -> bytes:
    """Return one final, unmasked frame (RFC 6455, section 5.2)."""
    length = len(payload)
    if length < 126:
        return _SHORT.pack(first, length) + payload
    if length < 65536:
        return _MIDDLE.pack(first, 126, length) + payload
    return _LONG.pack(first, 127, length) + payload

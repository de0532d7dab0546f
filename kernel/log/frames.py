"""Frames: one message as bytes ready for the socket, each variant built at most once and shared by all who get it.

An `Encoding` is how one client wants its messages: RFC 6455 frames (server frames are not masked, so they can be
shared), with `format=zlib` and `permessage-deflate` (RFC 7692) where agreed, or plain ASGI messages where no ready
frames can be written. A `Frame` is one event, or a marker (`gap`, `epoch_changed`) that stands in the log like one.
"""

import zlib
from collections.abc import Iterable
from struct import Struct
from typing import Any, Protocol

import msgspec

from kernel.log.envelope import Entry
from kernel.messages.control import Control, EpochChanged, Gap
from kernel.messages.names import names_of
from kernel.position import Position

__all__ = [
    "WINDOW_BITS",
    "AsgiEncoding",
    "Encoding",
    "Frame",
    "Joined",
    "WireEncoding",
    "chunks",
    "ready_control",
    "saved_bytes",
]

# The LZ77 window of the shared permessage-deflate variant: what the `websockets` library asks for, and browsers take.
WINDOW_BITS = 12
# Shorter messages do not get smaller.
_LEAST_DEFLATED = 128

_TEXT, _BINARY, _COMPRESSED = 0x81, 0x82, 0x40
# Heads of frames, by how long the payload is.
_SHORT, _MIDDLE, _LONG = Struct("!BB"), Struct("!BBH"), Struct("!BBQ")

_encode = msgspec.json.Encoder().encode

# What a sink takes in one write: wire bytes, or ASGI messages (text or bytes) in their order.
Joined = bytes | list[str | bytes]


class Encoding(Protocol):
    """How one client wants its messages; equal for clients that can share them."""

    @property
    def compresses(self) -> bool:
        """Whether some messages get smaller than their JSON."""
        ...

    def encode(self, json: bytes) -> bytes | str:
        """One message, ready."""
        ...

    def join(self, messages: Iterable[bytes | str]) -> Joined:
        """Several ready messages as one write."""
        ...


class WireEncoding:
    """RFC 6455 frames.

    `zlib_from`: messages of at least so many bytes become binary frames of 0x00 and a zlib stream (None: never).
    `deflate`: permessage-deflate without context takeover was agreed; `level` is zlib's, 1 to 9.
    """

    __slots__ = ("_deflate", "_level", "_zlib_from", "compresses")

    def __init__(self, zlib_from: int | None, *, deflate: bool, level: int) -> None:
        self.compresses = deflate or zlib_from is not None
        self._zlib_from = zlib_from
        self._deflate = deflate
        self._level = level

    def encode(self, json: bytes) -> bytes:
        """One message as one unfragmented frame."""
        if self._zlib_from is not None and len(json) >= self._zlib_from:
            return _framed(_BINARY, _zlibbed(json, self._level))
        if self._deflate and len(json) >= _LEAST_DEFLATED:
            compressor = zlib.compressobj(self._level, zlib.DEFLATED, -WINDOW_BITS)
            # RFC 7692 section 7.2.1: the empty block at the end is left out
            deflated = (compressor.compress(json) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            if len(deflated) < len(json):
                return _framed(_TEXT | _COMPRESSED, deflated)
        return _framed(_TEXT, json)

    def join(self, messages: Iterable[bytes | str]) -> bytes:
        """Several ready messages as one write."""
        return b"".join(messages)  # type: ignore[arg-type]  # this encoding makes bytes only


class AsgiEncoding:
    """Messages for ASGI's `send`: str for text, bytes for binary."""

    __slots__ = ("_level", "_zlib_from", "compresses")

    def __init__(self, zlib_from: int | None, *, level: int) -> None:
        self.compresses = zlib_from is not None
        self._zlib_from = zlib_from
        self._level = level

    def encode(self, json: bytes) -> bytes | str:
        """One message's payload."""
        if self._zlib_from is not None and len(json) >= self._zlib_from:
            return _zlibbed(json, self._level)
        return json.decode()

    def join(self, messages: Iterable[bytes | str]) -> list[str | bytes]:
        """Several ready messages as one write."""
        return list(messages)


class Frame:
    """One event or marker of the log, with the variants of it that somebody has wanted so far.

    `place` is where a client stands that has it. `names` are what patterns see; None for a marker, which all get.
    """

    __slots__ = ("_json", "_ready", "_replayed", "entry", "names", "place")

    def __init__(self, place: Position, json: bytes, entry: Entry | None = None) -> None:
        self.place = place
        self.entry = entry
        self.names = None if entry is None else names_of(entry.type, entry.event_type)
        self._json = json
        self._ready: dict[Encoding, bytes | str] = {}
        self._replayed: dict[Encoding, bytes | str] = {}

    @classmethod
    def of(cls, epoch: str, entry: Entry) -> "Frame":
        """The frame of an event: `{"type", "data", "sequence", "requires_ack"}`, `timestamp` and `traceparent`."""
        requires_ack = b"true" if entry.requires_ack else b"false"
        further = b""
        if entry.timestamp is not msgspec.UNSET:
            further += b',"timestamp":' + _encode(entry.timestamp)
        if entry.traceparent is not None:
            further += b',"traceparent":' + _encode(entry.traceparent)
        json = b'{"type":%b,"data":%b,"sequence":%d,"requires_ack":%b%b}' % (
            _encode(entry.type),
            entry.data,
            entry.sequence,
            requires_ack,
            further,
        )
        return cls(Position(epoch, entry.sequence), json, entry)

    @classmethod
    def gap(cls, epoch: str, first: int, last: int) -> "Frame":
        """The marker that stands where the events `first` to `last` would have been."""
        return cls(Position(epoch, last), _encode(Gap(first, last)))

    @classmethod
    def new_epoch(cls, epoch: str) -> "Frame":
        """The marker between the last event of one epoch and the first of the next."""
        return cls(Position(epoch, 0), _encode(EpochChanged(epoch)))

    @classmethod
    def first_epoch(cls, place: Position) -> "Frame":
        """The marker for those who came before Redis was ever reached: the numbering as it is now, from `place` on."""
        return cls(place, _encode(EpochChanged(place.epoch)))

    @property
    def size(self) -> int:
        """Bytes of the plain message."""
        return len(self._json)

    @property
    def wants_ack(self) -> bool:
        """Whether it is an event that its receivers should acknowledge."""
        return self.entry is not None and self.entry.requires_ack

    def message(self, *, replay: bool) -> dict[str, Any]:
        """The message as Python has it."""
        decoded: dict[str, Any] = msgspec.json.decode(self._json)
        return {**decoded, "replay": True} if replay else decoded

    def ready(self, encoding: Encoding) -> bytes | str:
        """The message as `encoding` has it."""
        made = self._ready.get(encoding)
        if made is None:
            made = self._ready[encoding] = encoding.encode(self._json)
        return made

    def replayed(self, encoding: Encoding) -> bytes | str:
        """The same, marked `"replay": true` if it is an event."""
        if self.entry is None:
            return self.ready(encoding)
        made = self._replayed.get(encoding)
        if made is None:
            made = self._replayed[encoding] = encoding.encode(self._json[:-1] + b',"replay":true}')
        return made


def ready_control(control: Control, encoding: Encoding) -> Joined:
    """A control message for one client, as one write."""
    return encoding.join((encoding.encode(_encode(control)),))


def saved_bytes(frames: Iterable[Frame], messages: Iterable[bytes | str], encoding: Encoding) -> int:
    """How many bytes `messages` are smaller than the JSON of the `frames` that they were made of."""
    if not encoding.compresses:
        return 0
    pairs = zip(frames, messages, strict=True)
    return sum(max(0, frame.size - len(made)) for frame, made in pairs if isinstance(made, bytes))


def chunks(frames: list[Frame], size: int) -> Iterable[list[Frame]]:
    """Cut frames into runs of about `size` bytes, each of one frame at least."""
    run: list[Frame] = []
    total = 0
    for frame in frames:
        if run and total + frame.size > size:
            yield run
            run, total = [], 0
        run.append(frame)
        total += frame.size
    if run:
        yield run


def _zlibbed(json: bytes, level: int) -> bytes:
    return b"\x00" + zlib.compress(json, level)


def _framed(first: int, payload: bytes) -> bytes:
    """RFC 6455 section 5.2: one final, unmasked frame."""
    length = len(payload)
    if length < 126:
        return _SHORT.pack(first, length) + payload
    if length < 65536:
        return _MIDDLE.pack(first, 126, length) + payload
    return _LONG.pack(first, 127, length) + payload

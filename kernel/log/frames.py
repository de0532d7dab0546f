"""Frames: one message as bytes ready for the socket, each variant built at most once and shared by its receivers.

A `Frame` is one event, or a marker (`gap`, `epoch_changed`) that stands in the log like one.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from kernel.log.encodings import Encoding, Joined, Ready
from kernel.log.envelope import Entry
from kernel.messages.control import Control, EpochChanged, Gap
from kernel.messages.names import names_of
from kernel.position import Position

__all__ = ["Frame", "NumberField", "chunks", "ready_control", "saved_bytes"]

NumberField = Literal["sequence", "seq"]
"""What an event's number is called in its frame; `seq` is its name in older clients."""

_encode = msgspec.json.Encoder().encode


class Frame:
    """One event or marker of the log, with those variants of it that were needed so far.

    `place` is where a client stands once it has the frame. Patterns are compared with `names`; they are None for a
    marker, which every client gets.
    """

    __slots__ = ("_json", "_marker", "_ready", "_replayed", "_unfinished", "entry", "names", "place")

    def __init__(self, place: Position, json: bytes, entry: Entry | None = None, marker: Control | None = None) -> None:
        self.place = place
        self.entry = entry
        self._marker = marker
        self.names = None if entry is None else names_of(entry.type, entry.event_type)
        self._json = json
        self._ready: dict[Encoding, Ready] = {}
        self._replayed: dict[Encoding, Ready] = {}
        self._unfinished: dict[tuple[Encoding, bool], Iterator[Ready | None]] = {}

    @classmethod
    def of(cls, epoch: str, entry: Entry, number_field: bytes = b"sequence") -> "Frame":
        """Return an event's frame: `{"type", "data", "sequence", "requires_ack"}`, `timestamp` and `traceparent`.

        `number_field` is the name of the number.
        """
        requires_ack = b"true" if entry.requires_ack else b"false"
        further = b""
        if entry.timestamp is not msgspec.UNSET:
            further += b',"timestamp":' + _encode(entry.timestamp)
        if entry.traceparent is not None:
            further += b',"traceparent":' + _encode(entry.traceparent)
        json = b'{"type":%b,"data":%b,"%b":%d,"requires_ack":%b%b}' % (
            _encode(entry.type),
            entry.data,
            number_field,
            entry.sequence,
            requires_ack,
            further,
        )
        return cls(Position(epoch, entry.sequence), json, entry)

    @classmethod
    def gap(cls, epoch: str, first: int, last: int) -> "Frame":
        """Return the marker that stands where the events `first` to `last` would have been."""
        return cls._marking(Position(epoch, last), Gap(first, last))

    @classmethod
    def new_epoch(cls, epoch: str) -> "Frame":
        """Return the marker between the last event of one epoch and the first of the next."""
        return cls._marking(Position(epoch, 0), EpochChanged(epoch))

    @classmethod
    def first_epoch(cls, place: Position) -> "Frame":
        """Return the marker for clients that connected before Redis was ever reached: their events follow `place`."""
        return cls._marking(place, EpochChanged(place.epoch))

    @classmethod
    def _marking(cls, place: Position, marker: Control) -> "Frame":
        return cls(place, _encode(marker), None, marker)

    @property
    def size(self) -> int:
        """The size of the plain message in bytes."""
        return len(self._json)

    @property
    def wants_ack(self) -> bool:
        """True if it is an event that clients should acknowledge."""
        return self.entry is not None and self.entry.requires_ack

    def message(self, *, replay: bool) -> dict[str, Any]:
        """Return the message as a dict; with `replay` it is marked as replayed."""
        decoded: dict[str, Any] = msgspec.json.decode(self._json)
        return {**decoded, "replay": True} if replay else decoded

    def ready(self, encoding: Encoding, *, replay: bool = False) -> Ready:
        """Return the message; with `replay` it has `"replay": true` if it is an event and the encoding marks those."""
        while (made := self.advance(encoding, replay=replay)) is None:
            pass
        return made

    def made(self, encoding: Encoding, *, replay: bool = False) -> Ready | None:
        """Return the message that `ready` returns, or None if it was not made before."""
        marked = replay and self.entry is not None and encoding.marks_replay
        return (self._replayed if marked else self._ready).get(encoding)

    def advance(self, encoding: Encoding, *, replay: bool = False) -> Ready | None:
        """Do one step of the work of `ready`; return the message once it is made, and None before.

        If several receivers need the message at the same time, each step that one of them does counts for all.
        """
        marked = replay and self.entry is not None and encoding.marks_replay
        variants = self._replayed if marked else self._ready
        made = variants.get(encoding)
        if made is None:
            steps = self._unfinished.pop((encoding, marked), None)
            if steps is None:
                steps = self._steps(encoding, marked=marked)
            made = next(steps)
            if made is None:
                self._unfinished[encoding, marked] = steps
            else:
                variants[encoding] = made
        return made

    def _steps(self, encoding: Encoding, *, marked: bool) -> Iterator[Ready | None]:
        if self._marker is not None:
            return iter((encoding.encode_control(self._marker, self.place),))
        return encoding.steps(self._json[:-1] + b',"replay":true}' if marked else self._json, self.place)


def ready_control(control: Control, encoding: Encoding, place: Position | None = None) -> Joined:
    """Return a control message as one write; `place`, if given, is where the client stands then."""
    return encoding.join((encoding.encode_control(control, place),))


def saved_bytes(frames: Iterable[Frame], messages: Iterable[Ready], encoding: Encoding) -> int:
    """Return by how many bytes `messages` are smaller than the JSON of the `frames` that they were made of."""
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

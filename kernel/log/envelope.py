"""The envelope in Redis: one event is an entry, and the entries of one call are an announcement.

An announcement, the payload on the channel, is `{"epoch": "…", "after": "…", "events": [entry, …]}`. `after` is the id
of the event before the first entry, "" before the first event of an epoch, and left out if it is unknown. An entry is
`{"sequence": 42, "id": "…", "type": "event", "data": {…}}` plus, where they apply, `timestamp`, `requires_ack`,
`event_type` (the data's own, by which patterns can match), the trace context `traceparent`, `tracestate`, `baggage`,
and `published_at`: when its replica was asked to publish it, in seconds since 1970 by that replica's clock.
The history keeps each entry without its number, which is the stream entry's id.

`data` is not decoded after the publish: it stays the bytes that the producer's replica wrote.
"""

from typing import Annotated

import msgspec

from kernel.messages.messages import Message, event_type_of, requires_ack, wire_type_of
from kernel.observer import TraceContext

__all__ = ["Announcement", "Entry", "decode_announcement", "decode_entry", "encode_data", "encode_tail"]


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One numbered event."""

    sequence: Annotated[int, msgspec.Meta(ge=1)]
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    type: Annotated[str, msgspec.Meta(min_length=1, max_length=50)]
    data: msgspec.Raw
    timestamp: str | None | msgspec.UnsetType = msgspec.UNSET
    requires_ack: bool = False
    event_type: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    published_at: float | None = None


class Announcement(msgspec.Struct, frozen=True):
    """The events of one call, in order, or none when only a new epoch is announced.

    `after` is the id of the event before the first one, "" before the first of an epoch, None if it is unknown.
    """

    epoch: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    events: list[Entry]
    after: Annotated[str, msgspec.Meta(max_length=128)] | None = None


class _Tail(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """An entry as its publisher writes it: everything but the number. The field order is that of the wire."""

    id: str
    type: str
    requires_ack: bool = False
    event_type: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    published_at: float | None = None
    timestamp: str | None | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw


_encoder = msgspec.json.Encoder()
_announcements = msgspec.json.Decoder(Announcement)
_entries = msgspec.json.Decoder(Entry)


def encode_data(message: Message) -> bytes:
    """Return the data of a message as the compact JSON that every client receives."""
    return _encoder.encode(message.data)


def encode_tail(message: Message, data: bytes, id: str, trace: TraceContext, published_at: float) -> bytes:
    """Return the JSON of an entry without its number: `,"id":"…",…,"data":{…}}`, to be appended to `{"sequence":42`."""
    encoded = _encoder.encode(
        _Tail(
            id=id,
            type=wire_type_of(message),
            requires_ack=requires_ack(message),
            event_type=event_type_of(message),
            traceparent=trace.traceparent,
            tracestate=trace.tracestate,
            baggage=trace.baggage,
            published_at=published_at,
            timestamp=getattr(message, "timestamp", msgspec.UNSET),
            data=msgspec.Raw(data),
        )
    )
    return b"," + encoded[1:]


def decode_announcement(payload: bytes) -> Announcement | None:
    """Return the announcement in a payload, or None if the payload is invalid."""
    try:
        # msgspec does not check the encoding of raw fields, and a frame that is not UTF-8 ends a connection
        return _announcements.decode(str(payload, "utf-8"))
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return None


def decode_entry(sequence: int, fields: dict[bytes, bytes]) -> Entry | None:
    """Return an entry of the history (its number and its stream fields), or None if it is invalid."""
    try:
        entry = _entries.decode(f'{{"sequence":{sequence}{str(fields.get(b"event", b""), "utf-8")}')
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return None
    # a second "sequence" in the text would override the first
    return entry if entry.sequence == sequence else None

"""The encoding of server-sent events (WHATWG HTML, 9.2 "Server-sent events").

A message is a block of lines that ends with an empty one. An event has an `id`, which a browser sends back as
`Last-Event-ID` when it reconnects, and its JSON as `data`; a control message has its name in `event` besides, so the
`onmessage` of a page gets events alone. A heartbeat is an `id` without data: it moves the browser's position past
events that the client's patterns left out, and the page does not notice it.
"""

from collections.abc import Iterable, Iterator

from kernel.log.encodings import Ready, encode_json
from kernel.messages.control import Control, EpochChanged, Gap, Ping
from kernel.position import Position

__all__ = ["EventStreamEncoding"]

# Within JSON, line ends can only be insignificant white space.
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


class EventStreamEncoding:
    """Blocks of lines in UTF-8; if `chunked`, each write is one chunk of HTTP/1.1's chunked coding (RFC 9112, 7.1)."""

    __slots__ = ("_chunked",)
    kind = "sse"
    compresses = two_way = False
    marks_replay = True

    def __init__(self, *, chunked: bool) -> None:
        self._chunked = chunked

    def encode(self, json: bytes, place: Position) -> bytes:
        """Return the block of an event."""
        return b"%bdata: %b\n\n" % (_id(place), json.translate(_LINE_ENDS))

    def steps(self, json: bytes, place: Position) -> Iterator[bytes]:
        """Do the work of `encode`, in one step."""
        yield self.encode(json, place)

    def encode_control(self, control: Control, place: Position | None = None) -> bytes:
        """Return the block of a control message; `place` is its `id`, but for a marker, which has none."""
        if isinstance(control, Ping):
            return (_id(Position(control.epoch, control.last_seq)) or b":\n") + b"\n"
        retry = b"" if control.reconnect_ms is None else b"retry: %d\n" % control.reconnect_ms
        id = b"" if place is None or isinstance(control, Gap | EpochChanged) else _id(place)
        return b"%b%bevent: %b\ndata: %b\n\n" % (id, retry, control.name.encode(), encode_json(control))

    def join(self, messages: Iterable[Ready]) -> bytes:
        """Return several blocks as one write."""
        body = b"".join(messages)  # type: ignore[arg-type]  # this encoding makes bytes only
        return b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body


def _id(place: Position) -> bytes:
    """Return the line with a position, which is empty if there is none yet, or if its epoch cannot stand in a line."""
    epoch, sequence = place
    return b"id: %b:%d\n" % (epoch.encode(), sequence) if epoch.isprintable() and epoch else b""

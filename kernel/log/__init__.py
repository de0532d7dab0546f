"""Events in order, in memory and in the history in Redis."""

from kernel.log.encodings import WINDOW_BITS, AsgiEncoding, Encoding, Joined, WireEncoding
from kernel.log.event_stream import EventStreamEncoding
from kernel.log.transport import Publication, Transport

__all__ = [
    "WINDOW_BITS",
    "AsgiEncoding",
    "Encoding",
    "EventStreamEncoding",
    "Joined",
    "Publication",
    "Transport",
    "WireEncoding",
]

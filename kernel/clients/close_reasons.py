"""The reasons for which a client's connection is closed."""

from typing import NamedTuple

__all__ = [
    "GOING_AWAY",
    "IDLE_TIMEOUT",
    "INTERNAL_ERROR",
    "MAX_AGE",
    "NORMAL",
    "SLOW_CLIENT",
    "TRY_AGAIN_LATER",
    "UNAUTHORIZED",
    "CloseReason",
]


class CloseReason(NamedTuple):
    """The reason to close a connection: a WebSocket's close code (RFC 6455, 7.4, or a private one) and a short text."""

    code: int
    text: str


NORMAL = CloseReason(1000, "")
IDLE_TIMEOUT = CloseReason(1000, "Idle timeout")
UNAUTHORIZED = CloseReason(1008, "Credentials missing or wrong")
INTERNAL_ERROR = CloseReason(1011, "Internal error")
GOING_AWAY = CloseReason(1012, "Server restart")
MAX_AGE = CloseReason(1012, "Connection too old: reconnect")
TRY_AGAIN_LATER = CloseReason(1013, "Connection limit reached, try again later")
SLOW_CLIENT = CloseReason(4008, "Position has left the history: reconnect and resync")

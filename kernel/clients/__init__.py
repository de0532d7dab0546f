"""This replica's clients: fan-out, catch-up, replay, subscriptions and acks."""

from kernel.clients.client import Client, Sink
from kernel.clients.close_reasons import (
    GOING_AWAY,
    IDLE_TIMEOUT,
    INTERNAL_ERROR,
    MAX_AGE,
    NORMAL,
    TRY_AGAIN_LATER,
    UNAUTHORIZED,
    CloseReason,
)
from kernel.clients.commands import Refused, patterns_from, sequence_from
from kernel.clients.page import PAGE_ENCODING, Page, PageResult
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.clients.replay import Resume
from kernel.clients.token_bucket import TokenBucket

__all__ = [
    "EVERYTHING",
    "GOING_AWAY",
    "IDLE_TIMEOUT",
    "INTERNAL_ERROR",
    "MAX_AGE",
    "NORMAL",
    "PAGE_ENCODING",
    "TRY_AGAIN_LATER",
    "UNAUTHORIZED",
    "Client",
    "CloseReason",
    "Page",
    "PageResult",
    "Patterns",
    "Refused",
    "Resume",
    "Sink",
    "TokenBucket",
    "patterns_from",
    "sequence_from",
]

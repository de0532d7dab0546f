"""The errors that the kernel raises.

    BroadcasterError
    ├── MessageInvalid          the message breaks a rule of its family; never retried
    │   └── EventTooLarge           its data is larger than an event may be
    ├── NotStarted              the broadcaster was used before start() or after stop()
    ├── CircuitOpen             the link to Redis is known to be down; the call was refused without an attempt
    ├── BroadcastFailed         every retry failed
    └── TransportError          one attempt over the link to Redis failed; a retry may succeed
        ├── TransportUnavailable    no connection, or no answer in time
        │   └── NotSent                 the same, and certainly nothing was sent
        └── WriteRefused            Redis answered, but refuses writes (READONLY, OOM, NOPERM …)

The transport converts the errors of redis-py and of sockets into these; code above it never sees the original ones.
"""

import msgspec

__all__ = [
    "BroadcastFailed",
    "BroadcasterError",
    "CircuitOpen",
    "EventTooLarge",
    "FieldError",
    "MessageInvalid",
    "NotSent",
    "NotStarted",
    "TransportError",
    "TransportUnavailable",
    "WriteRefused",
]


class BroadcasterError(Exception):
    """The base of every error that the kernel raises on purpose."""


class FieldError(msgspec.Struct, frozen=True):
    """One error in one field of a message.

    `field` is the path in the body as it was sent (`data.risk_score`, `[3].data.status`; "" for the whole body),
    `message` says what is wrong and what is allowed.
    """

    field: str
    message: str


class MessageInvalid(BroadcasterError):
    """The message breaks a rule of its family; `errors` is never empty."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in errors))
        self.errors = errors


class EventTooLarge(MessageInvalid):
    """The data of an event is larger than `limit` bytes, as the compact JSON in which it would be passed on.

    `index` is the position of the event in its batch, None for a single one.
    """

    def __init__(self, limit: int, index: int | None = None) -> None:
        field = "data" if index is None else f"[{index}].data"
        super().__init__([FieldError(field, f"must not be larger than {limit:,} bytes as compact JSON")])
        self.limit = limit
        self.index = index


class NotStarted(BroadcasterError):
    """The broadcaster was used before `start()` or after `stop()`."""


class CircuitOpen(BroadcasterError):
    """The link to Redis is known to be down; `retry_after` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("the link to Redis is down (circuit open)")
        self.retry_after = retry_after


class BroadcastFailed(BroadcasterError):
    """Redis could not be reached within the retries; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TransportError(BroadcasterError):
    """One attempt over the link to Redis failed."""


class TransportUnavailable(TransportError):
    """No connection to Redis, or no answer within the deadline."""


class NotSent(TransportUnavailable):
    """A publish failed before anything of it was sent to Redis."""


class WriteRefused(TransportError):
    """Redis answered, but does not take writes."""

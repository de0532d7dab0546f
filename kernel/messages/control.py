"""Control messages: what server and client say to each other beside the events. They have no number and no filter."""

from typing import Any

import msgspec

__all__ = [
    "Connected",
    "Control",
    "EpochChanged",
    "Error",
    "Gap",
    "Ping",
    "Pong",
    "ResyncAck",
    "ServiceNotice",
    "Shutdown",
    "Subscribed",
    "Unsubscribed",
]


class Control(msgspec.Struct, frozen=True):
    """A message of the broadcaster itself."""


class Connected(Control, frozen=True, tag_field="type", tag="connected"):
    """The first frame; `last_seq` is where this replica stands."""

    connection_id: str
    epoch: str
    last_seq: int = msgspec.field(name="lastSeq")
    message: str = "Connected to events channel"


class Ping(Control, frozen=True, tag_field="type", tag="ping"):
    """The heartbeat: every matching event up to the client's own place `last_seq` was written before it."""

    last_seq: int = msgspec.field(name="lastSeq")
    epoch: str


class Pong(Control, frozen=True, tag_field="type", tag="pong"):
    """The answer to a client's ping."""


class Subscribed(Control, frozen=True, tag_field="action", tag="subscribed"):
    """The patterns of a subscribe, lower case."""

    events: list[str]


class Unsubscribed(Control, frozen=True, tag_field="action", tag="unsubscribed"):
    """The patterns that an unsubscribe removed."""

    events: list[str]


class ResyncAck(Control, frozen=True, tag_field="type", tag="resync_ack", omit_defaults=True):
    """The end of a replay and its verdict.

    `recovered` is true only if the client now has every matching event after `last_sequence`. Otherwise `gap_too_old`
    (with `oldest_available`) or `epoch_changed` says why, or neither: the number is beyond the newest.
    """

    channel: str
    epoch: str
    last_sequence: int
    replayed_count: int
    recovered: bool
    gap_too_old: bool = False
    oldest_available: int | None = None
    epoch_changed: bool = False


class Gap(Control, frozen=True, tag_field="type", tag="gap"):
    """Events `first` to `last`, both included, are lost."""

    first: int = msgspec.field(name="from")
    last: int = msgspec.field(name="to")


class EpochChanged(Control, frozen=True, tag_field="type", tag="epoch_changed"):
    """The numbering began anew; events of the old epoch may be lost."""

    epoch: str


class Error(Control, frozen=True, tag_field="type", tag="error"):
    """What was wrong with one frame of the client."""

    error: str
    message: str
    details: dict[str, Any]


class _NoticeData(msgspec.Struct, frozen=True):
    status: str
    message: str
    circuit_state: str
    service: str = "event_broadcaster"


class ServiceNotice(Control, frozen=True, tag_field="type", tag="service_status"):
    """The broadcaster's own state, told on the way into and out of degraded mode."""

    data: _NoticeData
    timestamp: str

    @classmethod
    def degraded(cls, timestamp: str) -> "ServiceNotice":
        """Redis is away: new events do not arrive, what is missed comes later."""
        text = "Redis cannot be reached: events are delayed, missed ones follow when it is back"
        return cls(_NoticeData("degraded", text, "open"), timestamp)

    @classmethod
    def healthy(cls, timestamp: str) -> "ServiceNotice":
        """Redis is back."""
        return cls(_NoticeData("healthy", "Redis is back: missed events follow", "closed"), timestamp)


class _ShutdownData(msgspec.Struct, frozen=True):
    delay_ms: int
    reason: str = "Server shutting down"
    reconnect: bool = True


class Shutdown(Control, frozen=True, tag_field="type", tag="system.shutdown"):
    """This connection will be closed in so many milliseconds: reconnect elsewhere."""

    data: _ShutdownData

    @classmethod
    def within(cls, delay_ms: int) -> "Shutdown":
        """A shutdown notice for a close in `delay_ms`."""
        return cls(_ShutdownData(delay_ms))

"""Control messages: all messages to a client that are not events. They have no sequence, and patterns do not apply."""

from typing import Any

import msgspec

__all__ = [
    "Closing",
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
    """The base of all control messages."""

    @property
    def name(self) -> str:
        """The kind of message: its type, or for an error the error's code."""
        return str(self.__struct_config__.tag)

    @property
    def reconnect_ms(self) -> int | None:
        """The time in milliseconds after which the client should connect again, for a message that ends a stream."""
        return None


class Connected(Control, frozen=True, tag_field="type", tag="connected"):
    """The first message on a connection; `last_seq` is the newest sequence that this replica has delivered.

    `seq` is the same number for clients that know events' numbers by that name.
    """

    connection_id: str
    epoch: str
    last_seq: int = msgspec.field(name="lastSeq")
    seq: int | msgspec.UnsetType = msgspec.UNSET
    message: str = "Connected to events channel"


class Ping(Control, frozen=True, tag_field="type", tag="ping"):
    """The heartbeat: every matching event up to `last_seq`, the client's position, was written before it."""

    last_seq: int = msgspec.field(name="lastSeq")
    epoch: str


class Pong(Control, frozen=True, tag_field="type", tag="pong"):
    """The reply to a client's ping."""


class Subscribed(Control, frozen=True, tag_field="action", tag="subscribed"):
    """The reply to a subscribe: its patterns in lower case."""

    events: list[str]


class Unsubscribed(Control, frozen=True, tag_field="action", tag="unsubscribed"):
    """The reply to an unsubscribe: the patterns that were removed."""

    events: list[str]


class ResyncAck(Control, frozen=True, tag_field="type", tag="resync_ack", omit_defaults=True):
    """The end of a replay, with its verdict.

    `recovered` is true only if the client now has every matching event after `last_sequence`. Otherwise `gap_too_old`
    (with `oldest_available`), `epoch_changed` or both say why not; if neither is set, `last_sequence` is beyond the
    newest event.
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
    """A new epoch has started and the numbering restarts; events of the old epoch may be lost."""

    epoch: str


class Error(Control, frozen=True, tag_field="type", tag="error"):
    """The reply to a message of the client that could not be processed."""

    error: str
    message: str
    details: dict[str, Any]

    @property
    def name(self) -> str:
        """The error's code."""
        return self.error


class _NoticeData(msgspec.Struct, frozen=True):
    status: str
    message: str
    circuit_state: str
    service: str = "event_broadcaster"


class ServiceNotice(Control, frozen=True, tag_field="type", tag="service_status"):
    """The state of the broadcaster, sent when it enters and when it leaves degraded mode."""

    data: _NoticeData
    timestamp: str

    @classmethod
    def degraded(cls, timestamp: str) -> "ServiceNotice":
        """Return the notice for entering degraded mode: no new events arrive; missed events follow later."""
        text = "Redis cannot be reached: events are delayed, missed ones follow when it is back"
        return cls(_NoticeData("degraded", text, "open"), timestamp)

    @classmethod
    def healthy(cls, timestamp: str) -> "ServiceNotice":
        """Return the notice for leaving degraded mode."""
        return cls(_NoticeData("healthy", "Redis is back: missed events follow", "closed"), timestamp)


class _ShutdownData(msgspec.Struct, frozen=True):
    delay_ms: int
    reason: str = "Server shutting down"
    reconnect: bool = True


class Shutdown(Control, frozen=True, tag_field="type", tag="system.shutdown"):
    """The notice that this connection will be closed in `delay_ms` milliseconds; the client should reconnect."""

    data: _ShutdownData

    @property
    def reconnect_ms(self) -> int | None:
        """The delay until the close."""
        return self.data.delay_ms

    @classmethod
    def within(cls, delay_ms: int) -> "Shutdown":
        """Return the notice for a close in `delay_ms` milliseconds."""
        return cls(_ShutdownData(delay_ms))


class Closing(Control, frozen=True, tag_field="type", tag="closing"):
    """The last message to a client whose connection has no close frame: the code and reason that one would have."""

    code: int
    reason: str

    @property
    def reconnect_ms(self) -> int | None:
        """One second; what is closed for its age or its credentials is closed at different times for each client."""
        return 1000

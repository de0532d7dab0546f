"""Names of spans and attributes: the messaging semantic conventions, and names of our own for what they do not cover.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/

The names of publishes, retries and deliveries deviate from the conventions, which say that a span SHOULD be named after
its destination (`publish security_events`). A service has one channel, so that all spans would have the same name, and
a list of traces would not show which of them is about an alert. They are named after the type of the event instead. The
number of names stays small, as the conventions require, because a type that is not built in is named `other`. The
channel is the attribute `messaging.destination.name`.
"""

from collections.abc import Sequence
from typing import Final

from kernel.messages import MESSAGE_TYPES

__all__ = [
    "AGE",
    "ATTEMPT",
    "BATCH_COUNT",
    "CAUSE",
    "CIRCUIT",
    "CONNECTIONS",
    "COUNT",
    "DELAY",
    "DELIVER",
    "DRAIN",
    "EPOCH",
    "ERROR_TYPE",
    "EVENT_TYPE",
    "EVENT_TYPES",
    "FAILURES",
    "FROM",
    "LAST_SEQUENCE",
    "LISTENER",
    "MESSAGE_ID",
    "OUTAGE",
    "PROBLEM",
    "PUBLISH",
    "PUBLISHES",
    "REASON",
    "RECIPIENTS",
    "REFUSED",
    "REPEATED",
    "REPLAY",
    "REPLICA",
    "REQUESTED",
    "RESPONSE_CODE",
    "RETRIES",
    "RETRY",
    "SEQUENCE",
    "SOURCE",
    "SUBSCRIBERS",
    "SUCCEEDED",
    "TO",
    "TRIAL",
    "UNFINISHED",
    "VERDICT",
    "WAITED",
    "messaging",
    "seconds",
]


class _ByType(dict[str, str]):
    """The span names of a verb, by the type of the event."""

    def __init__(self, verb: str) -> None:
        super().__init__({wire_type: f"{verb} {wire_type}" for wire_type in MESSAGE_TYPES})
        self.batch = f"{verb} batch"
        self._other = f"{verb} other"

    def __missing__(self, wire_type: str) -> str:
        return self._other

    def of(self, wire_types: Sequence[str]) -> str:
        """Return the name for one event or a batch of these types."""
        return self[wire_types[0]] if len(wire_types) == 1 else self.batch


PUBLISH: Final = _ByType("publish")
RETRY: Final = _ByType("retry")
DELIVER: Final = _ByType("deliver")

# {} is the channel; for a transition of the circuit, its two states.
REPLAY: Final = "replay {}"
CIRCUIT: Final = "circuit {} -> {}"
OUTAGE: Final = "circuit open"
LISTENER: Final = "restart listener {}"
DRAIN: Final = "drain {}"

# The event of a trial while the circuit is open.
TRIAL: Final = "trial"

# Attributes of the semantic conventions.
BATCH_COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"
MESSAGE_ID: Final = "messaging.message.id"
RESPONSE_CODE: Final = "db.response.status_code"

# Attributes of this service.
AGE: Final = "event_broadcaster.age_seconds"
ATTEMPT: Final = "event_broadcaster.attempt"
CAUSE: Final = "event_broadcaster.cause"
CONNECTIONS: Final = "event_broadcaster.connections"
COUNT: Final = "event_broadcaster.count"
DELAY: Final = "event_broadcaster.delay_seconds"
EPOCH: Final = "event_broadcaster.epoch"
EVENT_TYPE: Final = "event_broadcaster.event.type"
EVENT_TYPES: Final = "event_broadcaster.event.types"
FAILURES: Final = "event_broadcaster.failure_count"
FROM: Final = "event_broadcaster.from"
LAST_SEQUENCE: Final = "event_broadcaster.sequence.last"
PROBLEM: Final = "event_broadcaster.problem"
PUBLISHES: Final = "event_broadcaster.publishes"
REASON: Final = "event_broadcaster.reason"
RECIPIENTS: Final = "event_broadcaster.recipients"
REFUSED: Final = "event_broadcaster.refused"
REPEATED: Final = "event_broadcaster.repeated"
REPLICA: Final = "event_broadcaster.replica"
REQUESTED: Final = "event_broadcaster.requested"
RETRIES: Final = "event_broadcaster.retries"
SEQUENCE: Final = "event_broadcaster.sequence"
SOURCE: Final = "event_broadcaster.source"
SUBSCRIBERS: Final = "event_broadcaster.subscribers"
SUCCEEDED: Final = "event_broadcaster.succeeded"
TO: Final = "event_broadcaster.to"
UNFINISHED: Final = "event_broadcaster.unfinished"
VERDICT: Final = "event_broadcaster.verdict"
WAITED: Final = "event_broadcaster.waited_seconds"


def messaging(channel: str, operation: str, kind: str) -> dict[str, str]:
    """Return the attributes that every messaging span has.

    `operation` is this service's verb ("publish", "deliver"), `kind` the operation type of the conventions ("send",
    "process").
    """
    return {
        "messaging.system": "redis",
        "messaging.destination.name": channel,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
    }


def seconds(value: float) -> float:
    """Return a duration as attributes have it: in seconds, rounded to microseconds."""
    return round(value, 6)

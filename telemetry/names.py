"""Names of spans and attributes: the messaging semantic conventions, and names of our own for what they do not cover.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from typing import Final

__all__ = [
    "ATTEMPT",
    "BATCH_COUNT",
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
    "PUBLISH",
    "QUEUED",
    "REASON",
    "RECIPIENTS",
    "RECOVERED",
    "REPEATED",
    "REPLAY",
    "RETRIES",
    "RETRY",
    "SEQUENCE",
    "SOURCE",
    "SUBSCRIBERS",
    "TO",
    "messaging",
]

# Span names. {} is the channel; for a transition of the circuit, its two states.
PUBLISH: Final = "publish {}"
RETRY: Final = "retry {}"
DELIVER: Final = "deliver {}"
REPLAY: Final = "replay {}"
CIRCUIT: Final = "circuit {} -> {}"
LISTENER: Final = "restart listener {}"
DRAIN: Final = "drain {}"

# Attributes of the semantic conventions.
BATCH_COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"

# Attributes of this service. Times are in seconds.
ATTEMPT: Final = "event_broadcaster.attempt"
CONNECTIONS: Final = "event_broadcaster.connections"
COUNT: Final = "event_broadcaster.count"
DELAY: Final = "event_broadcaster.delay"
EPOCH: Final = "event_broadcaster.epoch"
EVENT_TYPE: Final = "event_broadcaster.event.type"
EVENT_TYPES: Final = "event_broadcaster.event.types"
FAILURES: Final = "event_broadcaster.failure_count"
FROM: Final = "event_broadcaster.from"
LAST_SEQUENCE: Final = "event_broadcaster.sequence.last"
QUEUED: Final = "event_broadcaster.queued"
REASON: Final = "event_broadcaster.reason"
RECIPIENTS: Final = "event_broadcaster.recipients"
RECOVERED: Final = "event_broadcaster.recovered"
REPEATED: Final = "event_broadcaster.repeated"
RETRIES: Final = "event_broadcaster.retries"
SEQUENCE: Final = "event_broadcaster.sequence"
SOURCE: Final = "event_broadcaster.source"
SUBSCRIBERS: Final = "event_broadcaster.subscribers"
TO: Final = "event_broadcaster.to"


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

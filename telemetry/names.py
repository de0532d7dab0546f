"""What spans and their attributes are called: by the messaging semantic conventions, or our own where they are silent.

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
    "FAILURES",
    "FROM",
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

# Spans; {} is the channel, and for a transition of the circuit its two states.
PUBLISH: Final = "publish {}"
RETRY: Final = "retry {}"
DELIVER: Final = "deliver {}"
REPLAY: Final = "replay {}"
CIRCUIT: Final = "circuit {} -> {}"
LISTENER: Final = "restart listener {}"
DRAIN: Final = "drain {}"

# Attributes that the conventions have.
BATCH_COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"

# And those that they have not. Times are in seconds.
ATTEMPT: Final = "event_broadcaster.attempt"
CONNECTIONS: Final = "event_broadcaster.connections"
COUNT: Final = "event_broadcaster.count"
DELAY: Final = "event_broadcaster.delay"
EPOCH: Final = "event_broadcaster.epoch"
EVENT_TYPE: Final = "event_broadcaster.event.type"
FAILURES: Final = "event_broadcaster.failure_count"
FROM: Final = "event_broadcaster.from"
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
    """The attributes that every messaging span has: `operation` is our verb, `kind` the conventions' type of it."""
    return {
        "messaging.system": "redis",
        "messaging.destination.name": channel,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
    }

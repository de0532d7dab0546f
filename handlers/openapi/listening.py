"""The content of the OpenAPI document for the routes that listen over HTTP: parameters and answers.

These routes read their queries themselves, as the WebSocket does, so Litestar cannot derive the parameters.
"""

from typing import Any, Final

from handlers.openapi.schemas import EVENT_STREAM, Json, reference

__all__ = ["LISTEN_PARAMETERS", "describe_listening"]


def _query(name: str, description: str, **schema: object) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string", **schema}}


LISTEN_PARAMETERS: Final[dict[str, Json]] = {
    "Events": _query("events", "Comma-separated patterns, such as `alert.*,camera.offline`; without it, all events."),
    "Since": _query(
        "since",
        "The number after which to resume.",
        type="integer",
        format="int64",
        minimum=0,
        maximum=9_007_199_254_740_991,
    ),
    "Epoch": _query("epoch", "The epoch of that number.", maxLength=256),
    "LastEventIdQuery": _query("last_event_id", "The `id` of the last event, EPOCH:SEQUENCE; wins over `since`."),
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The `id` of the last event, EPOCH:SEQUENCE, as a browser sends it; wins over the query.",
        "schema": {"type": "string"},
    },
    "Token": _query("token", "The token of `WEBSOCKET_TOKEN`, if the service has one."),
    "ApiKeyQuery": _query("api_key", "One of `API_KEYS`, for clients that cannot send headers."),
    "Wait": _query(
        "wait",
        "The seconds to wait for an event. If absent: 20.",
        type="number",
        format="double",
        minimum=0,
        maximum=60,
    ),
}

_REFUSALS: Final = {
    "401": "Unauthorized",
    "403": "Forbidden",
    "414": "TargetTooLong",
    "421": "MisdirectedRequest",
    "431": "FieldsTooLarge",
    "503": "Unavailable",
}

_STREAM: Final = """\
A stream of server-sent events for `EventSource`, `curl` and others. Each event has an `id`, which is its position, and
its JSON as `data`; control messages have their type as `event` besides. After a lost connection, a browser sends the
last `id` as `Last-Event-ID`, and the missed events are replayed. A parameter that is not valid counts as absent and is
reported by the message `validation_error`."""

_STREAM_EXAMPLE: Final = (
    'id: 9f86d081884c7d65:41\nevent: connected\ndata: {"type":"connected","epoch":"9f86d081884c7d65","lastSeq":41}\n\n'
    'id: 9f86d081884c7d65:42\ndata: {"type":"alert_deleted","data":{"id":"alert-7","reason":null},"sequence":42,'
    '"requires_ack":false}\n\n'
)

_POLL: Final = """\
Returns at once if events match after the position, otherwise as soon as one does, otherwise an empty list after `wait`
seconds. The answer's `epoch` and `lastSeq` are the position for the next poll. Without a position, the answer is the
newest position alone. At most 1,000 events or 1 MiB are returned; `more` says that others follow."""

_POLL_EXAMPLE: Final = {
    "epoch": "9f86d081884c7d65",
    "lastSeq": 42,
    "events": [
        {"type": "alert_deleted", "data": {"id": "alert-7", "reason": None}, "sequence": 42, "requires_ack": False}
    ],
    "recovered": True,
}


def describe_listening(paths: dict[str, Any]) -> None:
    """Describe `/events` and `/events/poll` in the paths of a document, if it has them."""
    refusals = {status: reference("responses", name) for status, name in _REFUSALS.items()}
    if "/events" in paths:
        stream = {"schema": reference("schemas", EVENT_STREAM), "example": _STREAM_EXAMPLE}
        paths["/events"]["get"] |= {
            "summary": "Receive events as a stream",
            "description": _STREAM,
            "parameters": [reference("parameters", name) for name in LISTEN_PARAMETERS if name != "Wait"],
            "responses": {
                "200": {"description": "The stream", "content": {"text/event-stream": stream}},
                **refusals,
            },
        }
    if "/events/poll" in paths:
        page = {"schema": reference("schemas", "PollAnswer"), "example": _POLL_EXAMPLE}
        paths["/events/poll"]["get"] |= {
            "summary": "Receive the events after a position",
            "description": _POLL,
            "parameters": [reference("parameters", name) for name in LISTEN_PARAMETERS],
            "responses": {
                "200": {"description": "Events and the next position", "content": {"application/json": page}},
                "400": reference("responses", "BadRequest"),
                **refusals,
            },
        }

"""The content of the OpenAPI document that Litestar cannot derive: bodies, headers and answers of the publish routes.

Litestar derives paths, names, tags, and the answers of the health routes. The publish routes read their requests
themselves, so their bodies are derived here, from the message types in the signatures of their functions.

Not here: the schemas that have names (schemas.py).
"""

from http import HTTPStatus
from typing import Final

import msgspec

from handlers.openapi.examples import EXAMPLES
from handlers.openapi.listening import LISTEN_PARAMETERS, describe_listening
from handlers.openapi.schemas import BATCH_BODY, METRICS_TEXT, Json, body_name, reference, schemas
from handlers.problems import PROBLEM_JSON
from handlers.routes.broadcast import PUBLISH_ROUTES
from handlers.routes.publishing import BodyType, body_type
from kernel import Message
from kernel.messages import MAX_BATCH

__all__ = ["INTRODUCTION", "complete"]

INTRODUCTION: Final = """\
Publish events over REST, and receive them over the WebSocket `/ws/events`. Every replica delivers the same events, in
the same order and under the same sequence numbers.

**Publish.** A body is JSON: either the data alone, or the envelope `{"type": …, "data": {…}}`, whose `type` may be left
out. A successful publish is answered with 202 and a receipt, every error with an `application/problem+json` document.
Unknown fields are dropped. Enum values are accepted in any letter case, except the `event_type` of a camera's status.

**Receive.** Connect to `/ws/events`. Optional query parameters are `events` (patterns such as
`?events=alert.*,camera.offline`; without it, all events), `since` and `epoch` (the position to resume from),
`format=zlib`, `token` and `api_key`. The first frame is `{"type":"connected", …, "epoch":"…","lastSeq":41}`. Each
matching event follows as `{"type":"event","data":{…},"sequence":42,"requires_ack":false}`. The client may send
`{"type":"subscribe","data":{"events":[…]}}`, `unsubscribe`, `resync`, `ack` and `ping`. After a lost connection,
connect again with `since` set to the highest `sequence` or `lastSeq` seen, and with its `epoch`: the missed events are
replayed, and if some are no longer available, the client is told so. Clients that cannot hold a WebSocket read the same
events from `/events` as server-sent events, or poll `/events/poll`."""

_TAGS: Final = {
    "events": "Security events and summaries",
    "alerts": "The steps in the life of an alert",
    "cameras": "Cameras and their views",
    "detections": "Single detections and closed batches",
    "status": "Services, workers, infrastructure",
    "batch": "Several messages in one request",
    "listen": "Events over HTTP: a stream of server-sent events, and polling",
    "operation": "Probes, health and metrics; no API key is needed",
}


def complete(document: Json) -> Json:
    """Add to Litestar's document what it lacks, in place, and return it."""
    paths = document["paths"]
    for path in paths.values():
        path.pop("head", None)  # the same answer as GET, without its body
        for operation in path.values():
            if operation.get("tags") == ["operation"]:
                operation["security"] = []
            for response in operation["responses"].values():
                if not response.get("headers"):
                    response.pop("headers", None)  # Litestar adds an empty object
    for route in PUBLISH_ROUTES:
        for path in route.paths:
            _describe_publish(paths[path]["post"], body_type(route))
    used = {tag for path in paths.values() for operation in path.values() for tag in operation["tags"]}
    document["tags"] = [{"name": name, "description": text} for name, text in _TAGS.items() if name in used]
    describe_listening(paths)
    if "/metrics" in paths:  # Litestar would describe JSON
        answer = _content("The metrics", "text/plain", reference("schemas", METRICS_TEXT))
        paths["/metrics"]["get"]["responses"] = {"200": answer}
    components = document.setdefault("components", {})
    components["schemas"] = components.get("schemas", {}) | schemas()
    components["parameters"] = _PARAMETERS | LISTEN_PARAMETERS
    components["headers"] = _HEADERS
    components["responses"] = {
        "Published": _accepted("Receipt", _RECEIPT),
        "BatchPublished": _accepted("BatchReceipt", {"receipts": [_RECEIPT]}),
    } | {name: _problem_response(*problem) for name, problem in _PROBLEMS.items()}
    components["securitySchemes"] = _SECURITY_SCHEMES
    return document


_RECEIPT: Final = {"sequence": 42, "epoch": "9f86d081884c7d65", "subscribers": 2}

_PARAMETERS: Final[Json] = {
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "1 to 128 visible ASCII characters. If the same key was used on the same path within 300 s, "
        "nothing is published and the first receipt is returned.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    },
    "Traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C Trace Context: continues the producer's trace. Ignored if invalid.",
        "schema": {"type": "string"},
    },
    "Tracestate": {
        "name": "tracestate",
        "in": "header",
        "description": "W3C Trace Context: passed on with `traceparent`.",
        "schema": {"type": "string"},
    },
}

_SECURITY_SCHEMES: Final[Json] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "One of `API_KEYS`, if the service has any"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key in another header"},
}

_HEADERS: Final[Json] = {
    "IdempotentReplayed": {
        "description": "`true` if this is the receipt of an earlier publish with the same `Idempotency-Key`",
        "schema": {"type": "string", "const": "true"},
    },
    "RetryAfter": {
        "description": "Seconds to wait before the next attempt",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Allow": {"description": "The methods that the path supports", "schema": {"type": "string"}},
    "WWWAuthenticate": {"description": "`Bearer`", "schema": {"type": "string"}},
}

# name -> status, when, example of `detail`, headers
_PROBLEMS: Final[dict[str, tuple[HTTPStatus, str, str, dict[str, str]]]] = {
    "BadRequest": (HTTPStatus.BAD_REQUEST, "Invalid message or header", "The body is not valid.", {}),
    "Unauthorized": (
        HTTPStatus.UNAUTHORIZED,
        "Missing or wrong API key",
        "A valid API key is needed: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
        {"WWW-Authenticate": "WWWAuthenticate"},
    ),
    "Forbidden": (
        HTTPStatus.FORBIDDEN,
        "The page's origin is not allowed by `ALLOWED_ORIGINS`",
        "Pages of the origin https://example.org are not allowed: to serve them, add https://example.org to "
        "ALLOWED_ORIGINS.",
        {},
    ),
    "NotFound": (HTTPStatus.NOT_FOUND, "Unknown route or alert kind", "There is nothing at this path.", {}),
    "MethodNotAllowed": (
        HTTPStatus.METHOD_NOT_ALLOWED,
        "Wrong method",
        "This path does not support this method.",
        {"Allow": "Allow"},
    ),
    "RequestTimeout": (
        HTTPStatus.REQUEST_TIMEOUT,
        "The request was not complete within `HTTP_REQUEST_SECONDS`; the connection is closed",
        "The request was not complete within 30 seconds.",
        {},
    ),
    "TooLarge": (
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "Body over `HTTP_MAX_BODY_BYTES`, or the data of an event over `EVENT_MAX_BYTES`",
        "The body must not be larger than 1048576 bytes.",
        {},
    ),
    "TargetTooLong": (
        HTTPStatus.REQUEST_URI_TOO_LONG,
        "Request target over 64,000 bytes; the connection is closed",
        "The request target must not be longer than 64000 bytes.",
        {},
    ),
    "UnsupportedMediaType": (
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "The Content-Type is not JSON in UTF-8, or the body is compressed",
        "The body must be JSON, not 'text/plain': send the header 'Content-Type: application/json'.",
        {},
    ),
    "MisdirectedRequest": (
        HTTPStatus.MISDIRECTED_REQUEST,
        "The service listens on loopback only and needs no credentials, and the `Host` is neither a loopback name nor "
        "in `ALLOWED_ORIGINS`",
        "To serve this host, add http://events.example.org to ALLOWED_ORIGINS.",
        {},
    ),
    "FieldsTooLarge": (
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "Header fields over 64 KiB in all; the connection is closed",
        "Header fields, trailers and chunk extensions must not be larger than 65536 bytes.",
        {},
    ),
    "Unavailable": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Redis was not reached within the retries, the circuit is open, the publishes in flight hold too much, or the "
        "service is stopping",
        "The link to Redis is down; nothing was published.",
        {"Retry-After": "RetryAfter"},
    ),
}


def _content(description: str, media_type: str, schema: Json, example: Json | None = None) -> Json:
    content = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"description": description, "content": {media_type: content}}


def _problem_response(status: HTTPStatus, description: str, detail: str, headers: dict[str, str]) -> Json:
    example: Json = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    if status is HTTPStatus.BAD_REQUEST:
        example["errors"] = [{"field": "data.risk_score", "message": "must be an integer from 0 to 100, not 101"}]
    response = _content(description, PROBLEM_JSON, reference("schemas", "Problem"), example)
    if headers:
        response["headers"] = {name: reference("headers", component) for name, component in headers.items()}
    return response


def _accepted(schema: str, example: Json) -> Json:
    response = _content("Published", "application/json", reference("schemas", schema), example)
    response["headers"] = {"Idempotent-Replayed": reference("headers", "IdempotentReplayed")}
    return response


def _describe_publish(operation: Json, body: BodyType) -> None:
    if isinstance(body, type) and issubclass(body, msgspec.Struct):
        operation["summary"] = (body.__doc__ or body.__name__).partition(";")[0].rstrip(".")
        operation["description"] = (
            f"Publishes one message of type `{body.__struct_config__.tag}` to the clients of all replicas. "
            "The answer is its receipt."
        )
        content = _message_body(body)
        accepted = reference("responses", "Published")
    else:
        operation["summary"] = f"Publish 1 to {MAX_BATCH:,} messages of any type, in order, all or none"
        operation["description"] = (
            "The messages get consecutive sequence numbers. If one of them is not valid, nothing is published."
        )
        content = _batch_body()
        accepted = reference("responses", "BatchPublished")
    problems = {str(status.value): reference("responses", name) for name, (status, *_) in _PROBLEMS.items()}
    operation["parameters"] = [reference("parameters", name) for name in _PARAMETERS]
    operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    operation["responses"] = {"202": accepted, **problems}


def _message_body(message: type[Message]) -> Json:
    envelope = EXAMPLES[str(message.__struct_config__.tag)]
    return {
        "schema": reference("schemas", body_name(message)),
        "examples": {
            "bare": {"summary": "Data alone", "value": envelope["data"]},
            "envelope": {"summary": "Data in an envelope", "value": envelope},
        },
    }


def _batch_body() -> Json:
    return {
        "schema": reference("schemas", BATCH_BODY),
        "examples": {"mixed": {"summary": "One message of each type", "value": list(EXAMPLES.values())}},
    }

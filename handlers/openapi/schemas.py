"""The named schemas of the OpenAPI document, in the form that code generators read best.

msgspec derives a schema from each struct. A generator makes a type from each named schema, and often ignores or refuses
what has no name. Therefore bodies and enums are named, an enum says that it is a string, and a `const` tells envelopes
apart. A default is described in words, because openapi-typescript makes a field with a `default` required.
"""

import inspect
from typing import Any, Final

import msgspec

from handlers.problems import Problem
from handlers.routes.health import Health, Readiness
from handlers.routes.poll import PollAnswer
from kernel import Message, Receipt
from kernel.messages import MAX_BATCH, MESSAGE_TYPES

__all__ = ["BATCH_BODY", "EVENT_STREAM", "METRICS_TEXT", "BatchReceipt", "Json", "body_name", "reference", "schemas"]

Json = dict[str, Any]

BATCH_BODY: Final = "BatchBody"
EVENT_STREAM: Final = "EventStream"
METRICS_TEXT: Final = "MetricsText"
_BATCH_ITEM: Final = "BatchItem"

# oapi-codegen names a constant after the value of each `const`: `service_status` becomes ServiceStatus.
_RENAMED: Final = {"ServiceStatus": "ServiceStatusValue", "CameraStatus": "CameraStatusValue"}

# Without a format, generators choose 32 bits: for the integers of Java and Rust, and the numbers of Go.
_FORMATS: Final = {"integer": "int64", "number": "double"}


_FRAME: Final[Json] = {
    "title": "Frame",
    "description": "An event, or in its place `gap`: events `from` to `to` are lost.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "The event's type, or `gap`."},
        "data": {
            "type": "object",
            "additionalProperties": True,
            "description": "The event's data, as in the publish of its type.",
        },
        "sequence": {"type": "integer", "format": "int64", "minimum": 1, "description": "The event's number."},
        "requires_ack": {"type": "boolean"},
        "timestamp": {"type": ["string", "null"], "description": "Only if the event's type has one."},
        "traceparent": {"type": "string", "description": "Only if the event was traced."},
        "from": {
            "type": "integer",
            "format": "int64",
            "minimum": 1,
            "description": "Only of `gap`: the first missing number.",
        },
        "to": {
            "type": "integer",
            "format": "int64",
            "minimum": 1,
            "description": "Only of `gap`: the last missing number.",
        },
    },
    "required": ["type"],
}


class BatchReceipt(msgspec.Struct):
    """One receipt for each message of the batch, in the order of the batch."""

    receipts: list[Receipt]


def reference(kind: str, name: str) -> Json:
    """Return a reference to a component, for example of the kind "schemas"."""
    return {"$ref": f"#/components/{kind}/{name}"}


def body_name(message: type[Message]) -> str:
    """Return the name of the schema of a body: the message or its data alone."""
    return message.__name__.removesuffix("Message") + "Body"


def schemas() -> Json:
    """Return all named schemas: messages, data, enums, bodies and answers."""
    kinds = [*MESSAGE_TYPES.values(), Receipt, BatchReceipt, PollAnswer, Problem, Health, Readiness]
    _, derived = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    named: Json = {}
    for derived_name, schema in derived.items():
        name = _RENAMED.get(derived_name, derived_name)
        named[name] = _plain(schema)
        for field, value in named[name].get("properties", {}).items():
            if "enum" in value:
                enum = name + field.title().replace("_", "")
                named[enum] = {"title": enum, "description": f"The values of `{field}`.", **value}
                named[name]["properties"][field] = reference("schemas", enum)
    for message in MESSAGE_TYPES.values():
        named[body_name(message)] = _body(message)
        data = named[_data(message).__name__]
        if not data["required"]:  # otherwise every envelope would be bare data too
            data["propertyNames"] = {"not": {"type": "string", "enum": ["type", "data"]}}
    named |= {"Frame": _FRAME, EVENT_STREAM: _text(EVENT_STREAM, "Server-sent events.")}
    named[METRICS_TEXT] = _text(METRICS_TEXT, "Metrics in the text format of Prometheus.")
    named["PollAnswer"]["properties"]["events"]["items"] = reference("schemas", "Frame")
    return named | _batch()


def _plain(node: Json) -> Json:
    """Return a schema that generators read well.

    Enums have a type, a single value is a `const`, nullable types are a list, numbers have a format, objects of any
    content say so, and there are no defaults.
    """
    schema = dict(node)
    if "$ref" in schema:
        prefix, _, name = schema["$ref"].rpartition("/")
        schema["$ref"] = f"{prefix}/{_RENAMED.get(name, name)}"
    if schema.get("title") in _RENAMED:
        schema["title"] = _RENAMED[schema["title"]]
    if "properties" in schema:
        schema["properties"] = {name: _plain(child) for name, child in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = _plain(schema[key])
    if "description" in schema:
        schema["description"] = inspect.cleandoc(schema["description"])
    if "enum" in schema:
        values = schema.pop("enum")
        schema |= {"type": "string"} | ({"const": values[0]} if len(values) == 1 else {"enum": values})
    if schema.get("type") in _FORMATS:
        schema["format"] = _FORMATS[schema["type"]]
    if schema.get("type") == "object" and "properties" not in schema:
        schema.setdefault("additionalProperties", True)
    if "anyOf" in schema:
        schema["anyOf"] = first, *others = [_plain(option) for option in schema["anyOf"]]
        if others == [{"type": "null"}] and "type" in first and "enum" not in first:
            del schema["anyOf"]
            schema |= first | {"type": [first["type"], "null"]}
    default = schema.pop("default", None)
    if isinstance(default, str):
        text = schema.get("description", "").rstrip(".")
        schema["description"] = f"{text + '. ' if text else ''}If absent: {default or 'empty'}."
    return schema


def _data(message: type[Message]) -> type[msgspec.Struct]:
    data: type[msgspec.Struct] = message.__annotations__["data"]
    return data


def _text(name: str, description: str) -> Json:
    return {"title": name, "description": description, "type": "string"}


def _body(message: type[Message]) -> Json:
    return {
        "title": body_name(message),
        "description": f"The data alone, or an envelope whose `type` is `{message.__struct_config__.tag}`.",
        "oneOf": [reference("schemas", _data(message).__name__), reference("schemas", message.__name__)],
    }


def _batch() -> Json:
    envelopes = {tag: reference("schemas", message.__name__) for tag, message in MESSAGE_TYPES.items()}
    mapping = {tag: envelope["$ref"] for tag, envelope in envelopes.items()}
    return {
        _BATCH_ITEM: {
            "title": _BATCH_ITEM,
            "description": "An envelope of any type.",
            "oneOf": list(envelopes.values()),
            "discriminator": {"propertyName": "type", "mapping": mapping},
        },
        BATCH_BODY: {
            "title": BATCH_BODY,
            "description": "Messages of any type, published together and in this order.",
            "type": "array",
            "items": reference("schemas", _BATCH_ITEM),
            "minItems": 1,
            "maxItems": MAX_BATCH,
        },
    }

"""The content of the OpenAPI document."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from handlers.openapi.examples import EXAMPLES
from kernel.messages import MESSAGE_TYPES, decode_batch, decode_message
from tests.handlers.http_app import ROUTES

STATUSES = {"202", "400", "401", "403", "404", "405", "408", "413", "414", "415", "421", "431", "503"}


@pytest.fixture
def document(make_app: Any) -> dict[str, Any]:
    """The document as a client receives it."""
    return json.loads(msgspec.json.encode(make_app().openapi_schema.to_schema()))


def references(node: Any) -> Iterator[str]:
    """Yield every `$ref` below a node."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from references(child)


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield a node and all objects below it; the properties of a schema by their schemas alone."""
    if isinstance(node, dict):
        yield node
        children = node.items()
        node = [v for k, child in children for v in (child.values() if k == "properties" else [child])]
    if isinstance(node, list):
        for child in node:
            yield from nodes(child)


def resolve(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Return the node, or the component that it refers to."""
    if "$ref" not in node:
        return node
    found = document
    for name in node["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_every_publish_route_is_described(document: dict[str, Any]) -> None:
    """Each publish route has an id, a summary, tags, a body, headers and all its answers."""
    for path in [*ROUTES.values(), "/broadcast/batch"]:
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]) == STATUSES
        assert operation["operationId"] == path[1:].replace("/", "_").replace("-", "_")
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]
        assert operation["requestBody"]["required"]
        parameters = [resolve(document, parameter)["name"] for parameter in operation["parameters"]]
        assert parameters == ["Idempotency-Key", "traceparent", "tracestate"]
        assert "Idempotent-Replayed" in resolve(document, operation["responses"]["202"])["headers"]
        assert "Retry-After" in resolve(document, operation["responses"]["503"])["headers"]
        for status in STATUSES - {"202"}:
            answer = resolve(document, operation["responses"][status])
            assert answer["content"]["application/problem+json"]["example"]["status"] == int(status)


def test_nothing_else_is_described_but_health(document: dict[str, Any]) -> None:
    """Besides the publish routes the document describes the health routes, which need no key."""
    others = set(document["paths"]) - set(ROUTES.values()) - {"/broadcast/batch"}

    assert others == {"/health", "/health/live", "/health/ready"}
    assert all(document["paths"][path]["get"]["security"] == [] for path in others)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """Every reference in the document can be resolved."""
    found = set(references(document))

    assert len(found) > 40
    for reference in found:
        assert resolve(document, {"$ref": reference})


@pytest.mark.parametrize("wire_type", MESSAGE_TYPES)
def test_examples_fit_exactly_one_form(document: dict[str, Any], wire_type: str) -> None:
    """Each example is valid under exactly one of the forms of its body, as `oneOf` demands."""
    body = document["paths"][ROUTES[wire_type]]["post"]["requestBody"]["content"]["application/json"]
    validator = Draft202012Validator(document | body["schema"])

    for example in body["examples"].values():
        validator.validate(example["value"])


def test_generators_find_named_types(document: dict[str, Any]) -> None:
    """Every enum is a named string, no body or answer is described inline, and no field has a default."""
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        for node in nodes(schema):
            assert "default" not in node, name
            assert "allOf" not in node, name
            assert "enum" not in node or node is schema or node["enum"] == ["type", "data"], name
            assert "enum" not in node or node["type"] == "string", name
        assert schema["description"], name
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        assert operation["description"]
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        for described in [*bodies, *operation["responses"].values()]:
            for content in resolve(document, described)["content"].values():
                assert set(content["schema"]) == {"$ref"}


def test_types_are_wide_enough(document: dict[str, Any]) -> None:
    """Integers have 64 bits, numbers are doubles, and an object without named fields says that it takes any."""
    formats = {"integer": "int64", "number": "double"}
    found = set()
    for name, schema in document["components"]["schemas"].items():
        for node in nodes(schema):
            types = node.get("type", [])
            for type_ in [types] if isinstance(types, str) else types:
                found.add(type_)
                assert node.get("format") == formats.get(type_) or type_ == "null", name
                assert type_ != "object" or "properties" in node or "additionalProperties" in node, name
    assert found == {"string", "integer", "number", "boolean", "object", "array", "null"}


def test_no_text_speaks_python(document: dict[str, Any]) -> None:
    """The texts are for callers in any language, and have no indentation of source code."""
    for node in nodes(document):
        text = node.get("description")
        if isinstance(text, str):
            assert not re.search(r"Error\b|\bNone\b|\bTrue\b|\braises\b|\n ", text), text


@pytest.mark.parametrize("wire_type", MESSAGE_TYPES)
def test_the_examples_are_accepted(document: dict[str, Any], wire_type: str) -> None:
    """Each publish route has an example in both forms, and the service accepts them."""
    body = document["paths"][ROUTES[wire_type]]["post"]["requestBody"]["content"]["application/json"]

    assert set(body["examples"]) == {"bare", "envelope"}
    for example in body["examples"].values():
        assert decode_message(wire_type, msgspec.json.encode(example["value"]))
    data, envelope = (resolve(document, form) for form in resolve(document, body["schema"])["oneOf"])
    assert "type" not in data["properties"]
    assert envelope["properties"]["type"] == {"type": "string", "const": wire_type}
    assert envelope["required"] == ["type", "data"]


def test_the_batch_example_is_accepted(document: dict[str, Any]) -> None:
    """The example of a batch has one message of each type."""
    body = document["paths"]["/broadcast/batch"]["post"]["requestBody"]["content"]["application/json"]

    [example] = body["examples"].values()
    assert len(decode_batch(msgspec.json.encode(example["value"]))) == len(EXAMPLES)
    schema = resolve(document, body["schema"])
    assert (schema["minItems"], schema["maxItems"]) == (1, 1000)
    item = resolve(document, schema["items"])
    assert item["discriminator"]["propertyName"] == "type"
    assert list(item["discriminator"]["mapping"]) == list(EXAMPLES)
    assert list(item["discriminator"]["mapping"].values()) == [form["$ref"] for form in item["oneOf"]]


def test_the_document_is_the_same_every_time(make_app: Any) -> None:
    """The paths come in the same order every time: that of the routes."""
    paths = list(make_app().openapi_schema.to_schema()["paths"])

    assert paths[:15] == list(ROUTES.values())


def test_keys_are_described_as_they_are_asked_for(make_app: Any) -> None:
    """The document describes both ways to send a key; keys are optional only if the service has none."""
    schemes = [{"bearer": []}, {"apiKey": []}]

    assert make_app().openapi_schema.to_schema()["security"] == [{}, *schemes]
    keyed = make_app(api_keys=("key",)).openapi_schema.to_schema()
    assert keyed["security"] == schemes
    assert set(keyed["components"]["securitySchemes"]) == {"bearer", "apiKey"}


def test_the_websocket_is_described_in_words(document: dict[str, Any]) -> None:
    """The introduction describes the WebSocket, which OpenAPI cannot describe."""
    assert "/ws/events" in document["info"]["description"]
    assert document["info"]["version"] == "1.2.3"


def test_the_license_is_named(document: dict[str, Any]) -> None:
    """The document names its license, which generators put into the clients that they make."""
    text = (Path(__file__).parents[3] / "LICENSE").read_text()

    assert document["info"]["license"] == {"name": "MIT", "identifier": "MIT"}
    assert text.startswith("MIT License\n")

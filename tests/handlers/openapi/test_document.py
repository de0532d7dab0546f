"""The content of the OpenAPI document."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

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
        assert operation["tags"]
        assert operation["requestBody"]["required"]
        parameters = [resolve(document, parameter)["name"] for parameter in operation["parameters"]]
        assert parameters == ["Idempotency-Key", "traceparent", "tracestate"]
        assert "Idempotent-Replayed" in operation["responses"]["202"]["headers"]
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
def test_the_examples_are_accepted(document: dict[str, Any], wire_type: str) -> None:
    """Each publish route has an example in both forms, and the service accepts them."""
    body = document["paths"][ROUTES[wire_type]]["post"]["requestBody"]["content"]["application/json"]

    assert set(body["examples"]) == {"bare", "envelope"}
    for example in body["examples"].values():
        assert decode_message(wire_type, msgspec.json.encode(example["value"]))
    assert len(body["schema"]["oneOf"]) == 2


def test_the_batch_example_is_accepted(document: dict[str, Any]) -> None:
    """The example of a batch has one message of each type."""
    body = document["paths"]["/broadcast/batch"]["post"]["requestBody"]["content"]["application/json"]

    [example] = body["examples"].values()
    assert len(decode_batch(msgspec.json.encode(example["value"]))) == len(EXAMPLES)
    assert (body["schema"]["minItems"], body["schema"]["maxItems"]) == (1, 1000)


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

"""The OpenAPI document and its page."""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from handlers.openapi.examples import EXAMPLES
from kernel.messages import MESSAGE_TYPES, decode_batch, decode_message
from tests.handlers.http_app import ROUTES

STATUSES = {"202", "400", "401", "404", "405", "413", "415", "503"}


@pytest.fixture
def document(make_app: Any) -> dict[str, Any]:
    """The document as a client gets it."""
    return json.loads(msgspec.json.encode(make_app().openapi_schema.to_schema()))


def references(node: Any) -> Iterator[str]:
    """Every `$ref` below a node."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from references(child)


def resolve(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The node itself, or what it refers to."""
    if "$ref" not in node:
        return node
    found = document
    for name in node["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_every_publish_route_is_described(document: dict[str, Any]) -> None:
    """Section 2, schema: each route has its id, summary, tags, body, headers and all its answers."""
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
    """Section 2, schema: beside the publish routes the document has the health routes, which need no key."""
    others = set(document["paths"]) - set(ROUTES.values()) - {"/broadcast/batch"}

    assert others == {"/health", "/health/live", "/health/ready"}
    assert all(document["paths"][path]["get"]["security"] == [] for path in others)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """Section 2, schema: the document is complete in itself."""
    found = set(references(document))

    assert len(found) > 40
    for reference in found:
        assert resolve(document, {"$ref": reference})


@pytest.mark.parametrize("wire_type", MESSAGE_TYPES)
def test_the_examples_are_accepted(document: dict[str, Any], wire_type: str) -> None:
    """Section 2, schema: each route has an example in both forms, and the service takes them."""
    body = document["paths"][ROUTES[wire_type]]["post"]["requestBody"]["content"]["application/json"]

    assert set(body["examples"]) == {"bare", "envelope"}
    for example in body["examples"].values():
        assert decode_message(wire_type, msgspec.json.encode(example["value"]))
    assert len(body["schema"]["oneOf"]) == 2


def test_the_batch_example_is_accepted(document: dict[str, Any]) -> None:
    """Section 2, schema: the batch's example has one message of each type."""
    body = document["paths"]["/broadcast/batch"]["post"]["requestBody"]["content"]["application/json"]

    [example] = body["examples"].values()
    assert len(decode_batch(msgspec.json.encode(example["value"]))) == len(EXAMPLES)
    assert (body["schema"]["minItems"], body["schema"]["maxItems"]) == (1, 1000)


def test_the_document_is_the_same_every_time(make_app: Any) -> None:
    """Section 2, schema: alerts come in the order of their life, not in that of a set."""
    paths = list(make_app().openapi_schema.to_schema()["paths"])

    assert paths[:15] == list(ROUTES.values())


def test_keys_are_described_as_they_are_asked_for(make_app: Any) -> None:
    """Section 2, schema: both ways to send a key are there, and optional only if no key is set."""
    schemes = [{"bearer": []}, {"apiKey": []}]

    assert make_app().openapi_schema.to_schema()["security"] == [{}, *schemes]
    keyed = make_app(api_keys=("key",)).openapi_schema.to_schema()
    assert keyed["security"] == schemes
    assert set(keyed["components"]["securitySchemes"]) == {"bearer", "apiKey"}


def test_the_websocket_is_described_in_words(document: dict[str, Any]) -> None:
    """Section 2, schema: the introduction tells of the WebSocket, which OpenAPI has no form for."""
    assert "/ws/events" in document["info"]["description"]
    assert document["info"]["version"] == "1.2.3"


async def test_the_page_works_without_internet(client: Any) -> None:
    """Section 2, schema: the page and its files come from this service alone, and the browser is told so."""
    page = await client.get("/schema", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    files = re.findall(r'(?:href|src|data-url)="(/[^"]+)"', page.text)
    assert len(files) == 3
    for file in files:
        answer = await client.get(file)
        assert answer.status_code == 200
        assert len(answer.content) > 10_000


async def test_the_page_below_a_prefix(make_app: Any, exchange: Any) -> None:
    """Section 2, schema: behind a proxy with a path prefix the page asks for its files below the prefix."""
    app = make_app()

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"root_path": "/events", "path": "/events/schema"}, receive, send)

    answer = await exchange(mounted, "/schema", [b""], {}, method="GET")

    assert b'src="/events/schema/assets/swagger-ui.js"' in answer.body


@pytest.mark.parametrize("accept", ["*/*", "text/html", "image/png", "", ";;,/,", "text/html;q=x"])
async def test_the_page_is_the_first_choice(client: Any, accept: str) -> None:
    """Section 2, schema: GET /schema is the page for who does not ask for JSON."""
    answer = await client.get("/schema", headers={"accept": accept})

    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/schema", "/schema/", "/schema/openapi.json"])
async def test_the_document_as_json(client: Any, path: str) -> None:
    """Section 2, schema: a client that asks for JSON gets the document, at /schema too."""
    answer = await client.get(path, headers={"accept": "application/json"})

    assert "json" in answer.headers["content-type"]
    assert answer.json()["openapi"].startswith("3.1")


async def test_the_document_as_yaml(client: Any) -> None:
    """Section 2, schema: the document is there as YAML too."""
    answer = await client.get("/schema/openapi.yaml")

    assert answer.status_code == 200
    assert "operationId: broadcast_event" in answer.text

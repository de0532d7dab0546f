"""The description of the routes that listen over HTTP."""

from typing import Any

import jsonschema
import pytest

from handlers.app import create_app
from handlers.settings import Settings


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document of the whole application."""
    schema: dict[str, Any] = create_app(Settings(), "redis://127.0.0.1:1").openapi_schema.to_schema()
    return schema


def resolved(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference refers to."""
    while "$ref" in node:
        _, kind, section, name = node["$ref"].split("/")
        node = document[kind][section][name]
    return node


@pytest.mark.parametrize(("path", "only"), [("/events", set[str]()), ("/events/poll", {"wait"})])
def test_parameters(document: dict[str, Any], path: str, only: set[str]) -> None:
    """Both routes describe the same parameters, and the poll its wait."""
    operation = document["paths"][path]["get"]
    names = {resolved(document, parameter)["name"] for parameter in operation["parameters"]}
    both = {"events", "since", "epoch", "last_event_id", "Last-Event-ID", "token", "api_key"}
    assert names == both | only
    assert operation["summary"]
    assert operation["description"]
    assert {"200", "401", "403", "421", "503"} <= operation["responses"].keys()
    for response in operation["responses"].values():
        assert resolved(document, response)["description"]


def test_answers_that_are_not_json(document: dict[str, Any]) -> None:
    """The stream and the metrics are described as the texts that they are, by named schemas."""
    media_types = {}
    for path in ("/events", "/metrics"):
        ((media_type, content),) = document["paths"][path]["get"]["responses"]["200"]["content"].items()
        media_types[path] = media_type
        assert set(content["schema"]) == {"$ref"}
        assert resolved(document, content["schema"])["type"] == "string"
    assert media_types == {"/events": "text/event-stream", "/metrics": "text/plain"}


def test_stream_example(document: dict[str, Any]) -> None:
    """The example of the stream is one: blocks of fields, each ended by an empty line."""
    content = document["paths"]["/events"]["get"]["responses"]["200"]["content"]
    *blocks, rest = content["text/event-stream"]["example"].split("\n\n")
    assert rest == ""
    fields = {line.partition(":")[0] for block in blocks for line in block.split("\n")}
    assert fields == {"id", "event", "data"}


def test_poll_answer(document: dict[str, Any]) -> None:
    """The example of a poll's answer is valid, and so is a gap; an answer without a position is not."""
    content = document["paths"]["/events/poll"]["get"]["responses"]["200"]["content"]["application/json"]
    schema = {**content["schema"], "components": document["components"]}
    jsonschema.validate(content["example"], schema)
    jsonschema.validate({**content["example"], "events": [{"type": "gap", "from": 1, "to": 2}], "more": True}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"events": [], "recovered": True}, schema)

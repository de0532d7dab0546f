"""The composition of the application: which routes it has on which port."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from handlers.app import create_app
from handlers.settings import Settings

OPERATION = ("/health", "/health/live", "/health/ready", "/metrics")
PUBLIC = ("/schema", "/schema/openapi.json", "/broadcast/event")
HERE = 80
"""The port on which the requests of `exchange` arrive."""


@pytest.mark.parametrize(
    ("internal_port", "there"), [(None, {*OPERATION, *PUBLIC}), (HERE, {*OPERATION}), (HERE + 1, {*PUBLIC})]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_the_routes_of_a_port(
    exchange: Callable[..., Any], method: str, internal_port: int | None, there: set[str]
) -> None:
    """With INTERNAL_PORT, metrics and health are on that port alone and nothing else is; without, all are on one."""
    app = create_app(Settings(internal_port=internal_port), "redis://127.0.0.1:1")
    answers = {path: await exchange(app, path, [b""], {}, method) for path in (*OPERATION, *PUBLIC)}
    assert {path for path, answer in answers.items() if answer.status != 404} == there
    for answer in answers.values():
        if answer.status == 404:
            assert answer.headers["content-type"] == "application/problem+json"
            if method == "GET":
                assert ("/schema" in json.loads(answer.body)["detail"]) == (internal_port != HERE)
    assert (await exchange(app, "/", [b""], {}, "OPTIONS")).status == 204, "HAProxy's health check works on both"


@pytest.mark.parametrize("internal_port", [None, HERE + 1])
async def test_the_document_lists_what_is_there(exchange: Callable[..., Any], internal_port: int | None) -> None:
    """The OpenAPI document of the public port has no internal routes, and no tag without a route."""
    app = create_app(Settings(internal_port=internal_port), "redis://127.0.0.1:1")
    document = json.loads((await exchange(app, "/schema/openapi.json", [b""], {}, "GET")).body)
    assert (set(OPERATION) <= document["paths"].keys()) == (internal_port is None)
    tags = {tag for path in document["paths"].values() for operation in path.values() for tag in operation["tags"]}
    assert {tag["name"] for tag in document["tags"]} == tags

"""Error answers: their status, their headers and their problem document."""

import json
import logging
from typing import Any

import pytest
from litestar import Litestar, get
from litestar.testing import AsyncTestClient

from handlers.openapi.examples import EXAMPLES
from handlers.problems import exception_handlers
from kernel import BroadcastFailed, CircuitOpen, EventTooLarge, NotStarted
from tests.fakes import FakeBroadcaster

PATH = "/broadcast/event"
EVENT = EXAMPLES["event"]
JSON = {"content-type": "application/json"}
SECRET = "what the neighbours do at night"


@pytest.mark.parametrize(
    ("method", "path", "content", "title", "status"),
    [
        ("POST", PATH, b"{}", "Bad Request", 400),
        ("POST", "/broadcast/alert/unknown", b"{}", "Not Found", 404),
        ("POST", "/broadcast/alert", b"{}", "Not Found", 404),
        ("GET", "/nowhere", b"", "Not Found", 404),
        ("GET", "/schema/nowhere", b"", "Not Found", 404),
        ("GET", "/schema/assets/nowhere", b"", "Not Found", 404),
        ("GET", PATH, b"", "Method Not Allowed", 405),
        ("HEAD", PATH, b"", "Method Not Allowed", 405),
        ("DELETE", "/health", b"", "Method Not Allowed", 405),
    ],
)
async def test_an_error_is_a_problem_document(
    client: Any, method: str, path: str, content: bytes, title: str, status: int
) -> None:
    """Every error is application/problem+json with type, title, status and detail."""
    answer = await client.request(method, path, content=content, headers={"content-type": "application/json"})

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    if method != "HEAD":
        problem = answer.json()
        assert set(problem) - {"errors"} == {"type", "title", "status", "detail"}
        assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", title, status)
        assert problem["detail"]
        assert ("errors" in problem) == (status == 400)


@pytest.mark.parametrize(("index", "field"), [(None, "data"), (3, "[3].data")])
async def test_an_event_that_is_too_large(client: Any, broadcaster: FakeBroadcaster, index: int, field: str) -> None:
    """An event over EVENT_MAX_BYTES is answered 413; in a batch the item is named."""
    broadcaster.error = EventTooLarge(65_536, index)

    answer = await client.post(PATH, json=EVENT)

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"] == [
        {"field": field, "message": "must not be larger than 65,536 bytes as compact JSON"}
    ]


async def test_details_that_are_too_large(client: Any, broadcaster: FakeBroadcaster) -> None:
    """Details over EVENT_MAX_BYTES are refused before they are inspected; whitespace does not count."""
    broadcaster.event_max_bytes = 1000
    for size, status in ((900, 202), (1000, 413)):
        body = EXAMPLES["camera_status"]["data"] | {"details": {"a": "x" * size}}
        answer = await client.post("/broadcast/camera-status", content=json.dumps(body, indent=99), headers=JSON)
        assert answer.status_code == status, answer.text


async def test_wrong_method_names_the_right_ones(client: Any) -> None:
    """A 405 lists the supported methods in Allow."""
    answer = await client.get(PATH)

    assert {method.strip() for method in answer.headers["allow"].split(",")} == {"POST", "OPTIONS"}


@pytest.mark.parametrize(("path", "methods"), [(PATH, "OPTIONS, POST"), ("/schema", "GET, OPTIONS")])
async def test_options_names_the_methods(make_app: Any, path: str, methods: str) -> None:
    """OPTIONS lists the methods of a path, without a key."""
    async with AsyncTestClient(make_app(api_keys=("key",))) as client:
        answer = await client.options(path, headers={"accept": "application/json"})

    assert answer.status_code == 204
    assert answer.headers["allow"] == methods


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (CircuitOpen(29.2), "30"),
        (CircuitOpen(0.0), "1"),
        (BroadcastFailed("every retry failed", 1.0), "1"),
        (BroadcastFailed("every retry failed", -3.0), "1"),
        (NotStarted("start it"), "1"),
    ],
)
async def test_redis_away_says_when_to_come_back(client: Any, broadcaster: Any, error: Exception, seconds: str) -> None:
    """A 503 has Retry-After in whole seconds, at least 1."""
    broadcaster.error = error

    for path, body in ((PATH, EVENT), ("/broadcast/batch", [EVENT])):
        answer = await client.post(path, json=body)

        assert answer.status_code == 503
        assert answer.headers["retry-after"] == seconds
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["title"] == "Service Unavailable"


async def test_an_unexpected_error_gives_nothing_away(
    client: Any, broadcaster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A 500 reveals nothing; the log has the class and the place of the error, but nothing that the client sent."""
    broadcaster.error = RuntimeError(SECRET)

    answer = await client.post(PATH, json=EVENT)

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["title"] == "Internal Server Error"
    assert "RuntimeError" not in answer.text
    assert SECRET not in answer.text
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage().startswith("RuntimeError at ")
    assert SECRET not in caplog.text
    assert EVENT["data"]["summary"] not in caplog.text


async def test_an_error_of_litestar_is_answered_alike(caplog: pytest.LogCaptureFixture) -> None:
    """Litestar's own 500 is a problem document too."""

    @get("/unserializable", sync_to_thread=False)
    def unserializable() -> object:
        return object()

    app = Litestar([unserializable], exception_handlers=exception_handlers, openapi_config=None, logging_config=None)
    async with AsyncTestClient(app) as client:
        answer = await client.get("/unserializable")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "SerializationException at " in caplog.text

"""The headers and the body of a publish request, and the order in which they are checked."""

import json
from typing import Any

import pytest

from handlers.openapi.examples import EXAMPLES
from handlers.routes import broadcast
from kernel import BroadcastFailed, Receipt
from tests.fakes import FakeBroadcaster

PATH = "/broadcast/event"
BODY = json.dumps(EXAMPLES["event"]).encode()
JSON_TYPE = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ; x=y",
        "application/cloudevents+json",
    ],
)
async def test_a_json_type_is_accepted(client: Any, content_type: str) -> None:
    """application/json and application/*+json are accepted, in any letter case and with parameters."""
    answer = await client.post(PATH, content=BODY, headers={"content-type": content_type})

    assert answer.status_code == 202


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "text/plain",
        "text/json",
        "application/jsonlines",
        "application/xml",
        "json",
        "application/json, application/json",
        "application/json; charset=latin-1",
        "application/json; x=y; charset=utf-16",
        "multipart/form-data; boundary=application/json",
    ],
)
async def test_another_type_is_refused(client: Any, broadcaster: Any, content_type: str) -> None:
    """A content type other than JSON in UTF-8 is answered 415; the answer says what to send."""
    answer = await client.post(PATH, content=BODY, headers={"content-type": content_type})

    assert answer.status_code == 415
    assert "Content-Type" in answer.json()["detail"]
    assert broadcaster.calls == []


async def test_no_type_is_refused(make_app: Any, exchange: Any, broadcaster: Any) -> None:
    """A missing content type is answered 415, because any web page could send such a request."""
    answer = await exchange(make_app(), PATH, [BODY], {})

    assert answer.status == 415
    assert broadcaster.calls == []


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("identity", 202), ("Identity", 202)])
async def test_a_compressed_body_is_refused(client: Any, encoding: str, status: int) -> None:
    """A compressed body is answered 415."""
    answer = await client.post(PATH, content=BODY, headers=JSON_TYPE | {"content-encoding": encoding})

    assert answer.status_code == status


async def test_a_body_of_the_largest_size_is_accepted(make_app: Any, exchange: Any) -> None:
    """A body of exactly HTTP_MAX_BODY_BYTES is accepted."""
    app = make_app(http_max_body_bytes=len(BODY))

    answer = await exchange(app, PATH, [BODY], JSON_TYPE | {"content-length": str(len(BODY))})

    assert answer.status == 202


async def test_a_body_announced_as_too_big_is_not_read(make_app: Any, exchange: Any, broadcaster: Any) -> None:
    """If Content-Length exceeds HTTP_MAX_BODY_BYTES, the answer is 413 and nothing is read."""
    app = make_app(http_max_body_bytes=len(BODY) - 1)

    answer = await exchange(app, PATH, [BODY], JSON_TYPE | {"content-length": str(len(BODY))})

    assert (answer.status, answer.pieces_read) == (413, 0)
    assert f"{len(BODY) - 1} bytes" in json.loads(answer.body)["detail"]
    # closing on a body that is still being sent would reset the connection, and the client would not see the answer
    assert "connection" not in answer.headers
    assert broadcaster.calls == []


async def test_a_chunked_body_that_grows_too_big_is_left(make_app: Any, exchange: Any, broadcaster: Any) -> None:
    """A body without a length is answered 413 as soon as it exceeds HTTP_MAX_BODY_BYTES."""
    app = make_app(http_max_body_bytes=250)

    answer = await exchange(app, PATH, [b" " * 100] * 1000, JSON_TYPE)

    assert (answer.status, answer.pieces_read) == (413, 3)
    assert broadcaster.calls == []


async def test_a_chunked_body_is_put_together(make_app: Any, exchange: Any, broadcaster: Any) -> None:
    """A body that arrives in pieces is put together."""
    pieces = [BODY[start : start + 50] for start in range(0, len(BODY), 50)]

    answer = await exchange(make_app(), PATH, [*pieces, b""], JSON_TYPE)

    assert answer.status == 202
    assert len(broadcaster.calls) == 1


async def test_a_client_that_leaves_publishes_nothing(
    make_app: Any, exchange: Any, broadcaster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An incomplete body is not published, and a lost client is not logged as an error."""
    answer = await exchange(make_app(), PATH, [BODY[:50], None], JSON_TYPE)

    assert answer.status == 400
    assert broadcaster.calls == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/broadcast/alert/unknown", {}, 404),
        ("PUT", PATH, {}, 405),
        ("POST", PATH, {"content-length": "9999"}, 401),
        ("POST", PATH, {"x-api-key": "key", "content-length": "9999"}, 415),
        ("POST", PATH, {"x-api-key": "key", "content-length": "9999", "idempotency-key": ""} | JSON_TYPE, 413),
        ("POST", PATH, {"x-api-key": "key", "idempotency-key": ""} | JSON_TYPE, 400),
    ],
)
async def test_the_order_of_the_checks(
    make_app: Any, exchange: Any, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """If several checks fail, the first of 404, 405, 401, 415, 413 and 400 is answered."""
    app = make_app(api_keys=("key",), http_max_body_bytes=1000)

    answer = await exchange(app, path, [b"not JSON"], headers, method=method)

    assert answer.status == status


async def test_bodies_in_flight_are_limited(
    make_app: Any, exchange: Any, broadcaster: FakeBroadcaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the limit of all bodies in flight a publish is a 503 with Retry-After; every answer releases its share."""
    monkeypatch.setattr(broadcast, "MAX_BODIES_BYTES", len(BODY) + 10)
    app = make_app()
    inner: list[Any] = []

    async def publish_another(*_: object, **__: object) -> Receipt:
        inner.append(await exchange(app, "/broadcast/batch", [b"[", b"x" * 10], JSON_TYPE))
        raise BroadcastFailed("Redis is away", 1.0)

    monkeypatch.setattr(broadcaster, "broadcast_event", publish_another)

    outer = await exchange(app, PATH, [BODY[:50], BODY[50:]], JSON_TYPE)

    assert (outer.status, inner[0].status, inner[0].headers["retry-after"]) == (503, 503, "1")
    assert "Nothing was published" in json.loads(inner[0].body)["detail"]
    for pieces, status in (([BODY, None], 400), ([b"x" * (len(BODY) + 11)], 503), ([b"not JSON"], 400), ([BODY], 503)):
        assert (await exchange(app, PATH, pieces, JSON_TYPE)).status == status
    assert inner[-1].status == 503
    answer = await exchange(app, PATH, [b"x" * (len(BODY) + 10)], JSON_TYPE)
    assert answer.status == 400, "all shares have been released"

"""Publishing over real HTTP, to two replicas of one Redis."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from handlers.openapi.examples import EXAMPLES
from tests.system.client import Client, connected
from tests.system.producers import KINDS, marked, route_of
from tests.system.replica import Replica, ReplicaFactory

PROBLEM = "application/problem+json"


@pytest.fixture
async def client(other: Replica) -> AsyncIterator[Client]:
    """A client on one replica; the tests publish at the other."""
    async with connected(other.websocket()) as client:
        await client.next()
        yield client


@pytest.mark.parametrize("kind", KINDS)
async def test_routes(replica: Replica, client: Client, kind: str) -> None:
    """Each route accepts bare data and the envelope, answers 202 with a receipt, and emits its type."""
    bare, envelope = marked(kind, "bare"), {**EXAMPLES[kind], "data": marked(kind, "envelope")}
    receipts = []
    for body in (bare, envelope, {"data": bare}):
        answer = await replica.post(route_of(kind), body)
        assert answer.status_code == 202
        assert answer.headers["content-type"] == "application/json"
        receipts.append(answer.json())
        assert receipts[-1].keys() == {"sequence", "epoch", "subscribers"}
        assert receipts[-1]["epoch"] == client.frames[0]["epoch"]
        assert receipts[-1]["subscribers"] == 2
    frames = [await client.next() for _ in receipts]
    assert [frame["type"] for frame in frames] == [kind] * 3
    assert [frame["sequence"] for frame in frames] == [receipt["sequence"] for receipt in receipts]
    assert [frame["data"] for frame in frames] == [bare, envelope["data"], bare]


async def test_numbers(replica: Replica, other: Replica, client: Client) -> None:
    """Sequence numbers increase by one, whichever replica is asked."""
    answers = [await each.post("/broadcast/event", EXAMPLES["event"]) for each in (replica, other, other, replica)]
    numbers = [answer.json()["sequence"] for answer in answers]
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    assert [(await client.next())["sequence"] for _ in numbers] == numbers


async def test_batch(replica: Replica, client: Client) -> None:
    """A batch of mixed types is numbered consecutively in its order."""
    answer = await replica.post("/broadcast/batch", list(EXAMPLES.values()))
    assert answer.status_code == 202
    receipts = answer.json()["receipts"]
    first = receipts[0]["sequence"]
    assert [receipt["sequence"] for receipt in receipts] == list(range(first, first + len(EXAMPLES)))
    assert all(receipt.keys() == {"sequence", "epoch", "subscribers"} for receipt in receipts)
    frames = [await client.next() for _ in receipts]
    assert [frame["type"] for frame in frames] == list(EXAMPLES)
    assert [frame["sequence"] for frame in frames] == [receipt["sequence"] for receipt in receipts]


async def test_largest_batch(replica: Replica, client: Client) -> None:
    """A batch has 1 to 1,000 items; 0 or 1,001 are refused."""
    item = {"type": "alert_deleted", "data": {"id": "x"}}
    answer = await replica.post("/broadcast/batch", [item] * 1000)
    numbers = [receipt["sequence"] for receipt in answer.json()["receipts"]]
    assert numbers == list(range(numbers[0], numbers[0] + 1000))
    await client.reached(numbers[-1])
    assert client.numbers == numbers
    for items in ([item] * 1001, []):
        assert (await replica.post("/broadcast/batch", items)).status_code == 400


async def test_bad_batch(replica: Replica) -> None:
    """A batch with an invalid item publishes nothing, and the error names the item and its field."""
    before = (await replica.post("/broadcast/event", EXAMPLES["event"])).json()["sequence"]
    items: list[Any] = [EXAMPLES["event"]] * 3 + [{"type": "event", "data": marked("event", "x") | {"risk_score": 101}}]
    answer = await replica.post("/broadcast/batch", items)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["[3].data.risk_score"]
    assert (await replica.post("/broadcast/event", EXAMPLES["event"])).json()["sequence"] == before + 1


async def test_idempotency(replica: Replica, other: Replica, client: Client) -> None:
    """The same Idempotency-Key on the same path publishes once, at any replica, whatever the body."""
    first = await replica.post("/broadcast/event", marked("event", "first"), Idempotency_Key="key!~1")
    assert "idempotent-replayed" not in first.headers
    for each in (other, replica):
        again = await each.post("/broadcast/event", marked("event", "again"), Idempotency_Key="key!~1")
        assert (again.status_code, again.json()) == (202, first.json())
        assert again.headers["idempotent-replayed"] == "true"
    elsewhere = await other.post("/broadcast/scene-change", EXAMPLES["scene_change"], Idempotency_Key="key!~1")
    assert elsewhere.json()["sequence"] == first.json()["sequence"] + 1
    assert "idempotent-replayed" not in elsewhere.headers
    assert [(await client.next())["type"] for _ in range(2)] == ["event", "scene_change"]


async def test_idempotent_batch(replica: Replica, other: Replica) -> None:
    """A batch that is repeated under its Idempotency-Key gets all its receipts again."""
    items = list(EXAMPLES.values())
    first = await replica.post("/broadcast/batch", items, Idempotency_Key="batch")
    again = await other.post("/broadcast/batch", items[:1], Idempotency_Key="batch")
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"


async def test_idempotency_at_once(replica: Replica, other: Replica, client: Client) -> None:
    """Concurrent publishes with the same Idempotency-Key are published once."""
    body = marked("event", "at once")
    posts = [each.post("/broadcast/event", body, Idempotency_Key="at-once") for each in (replica, other) * 5]
    receipts = [answer.json() for answer in await asyncio.gather(*posts)]
    assert all(receipt == receipts[0] for receipt in receipts)
    fence = (await replica.post("/broadcast/event", body)).json()["sequence"]
    await client.reached(fence)
    assert client.numbers == [receipts[0]["sequence"], fence]


async def test_idempotency_needs_a_valid_body(replica: Replica) -> None:
    """An invalid body gets 400, also under a known Idempotency-Key."""
    await replica.post("/broadcast/alert/deleted", {"id": "x"}, Idempotency_Key="known")
    answer = await replica.post("/broadcast/alert/deleted", {"id": 7}, Idempotency_Key="known")
    assert answer.status_code == 400


async def test_idempotency_lifetime(replica: Replica, valkey: str) -> None:
    """An Idempotency-Key is remembered for 300 s."""
    with redis.Redis.from_url(valkey) as link:
        before = set(link.keys("{shared}:idempotency:*"))
        await replica.post("/broadcast/alert/deleted", {"id": "x"}, Idempotency_Key="lifetime")
        [longest] = sorted(link.pttl(key) for key in set(link.keys("{shared}:idempotency:*")) - before)[-1:]
    assert 290_000 < longest <= 300_000


@pytest.mark.parametrize("key", ["", "two words", "x" * 129, "ümlaut", "tab\there"])
async def test_bad_idempotency_key(replica: Replica, key: str) -> None:
    """An Idempotency-Key that is not 1 to 128 visible ASCII characters gets 400."""
    async with replica.http() as http:
        headers = [(b"Idempotency-Key", key.encode())]
        answer = await http.post("/broadcast/alert/deleted", json={"id": "x"}, headers=headers)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == PROBLEM


async def test_longest_idempotency_key(replica: Replica) -> None:
    """An Idempotency-Key may have 128 characters."""
    assert (await replica.post("/broadcast/alert/deleted", {"id": "x"}, Idempotency_Key="~" * 128)).status_code == 202


async def test_trace_context(replica: Replica, client: Client) -> None:
    """The frame of an event carries its producer's trace."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await replica.post("/broadcast/alert/deleted", {"id": "traced"}, traceparent=parent, tracestate="a=b")
    await replica.post("/broadcast/alert/deleted", {"id": "plain"})
    assert (await client.next())["traceparent"].split("-")[1] == parent.split("-")[1]
    assert "traceparent" not in await client.next()


BAD_BODIES = {
    "not JSON": (b'{"id": ', ""),
    "not UTF-8": (b'{"id": "\xff"}', ""),
    "not an object": (b"[]", ""),
    "missing": ({"event_id": 1}, "id"),
    "wrong type": ({**EXAMPLES["event"]["data"], "risk_score": "75"}, "risk_score"),
    "out of range": ({**EXAMPLES["event"]["data"], "risk_score": 101}, "risk_score"),
    "a bool is no number": ({**EXAMPLES["event"]["data"], "risk_score": True}, "risk_score"),
    "null where there is none": ({**EXAMPLES["event"]["data"], "summary": None}, "summary"),
    "in an envelope": (
        {"type": "event", "data": {**EXAMPLES["event"]["data"], "risk_level": "none"}},
        "data.risk_level",
    ),
    "another type": (EXAMPLES["scene_change"], "type"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
async def test_bad_body(replica: Replica, case: str) -> None:
    """An invalid body gets a problem document that names the field, and nothing is published."""
    body, field = BAD_BODIES[case]
    before = (await replica.post("/broadcast/event", EXAMPLES["event"])).json()["sequence"]
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = await replica.request(
        "POST", "/broadcast/event", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert problem["status"] == 400
    assert {"type", "title", "detail"} <= problem.keys()
    assert field in [error["field"] for error in problem["errors"]]
    assert all(error.keys() == {"field", "message"} for error in problem["errors"])
    assert (await replica.post("/broadcast/event", EXAMPLES["event"])).json()["sequence"] == before + 1


async def test_enum_error(replica: Replica) -> None:
    """The error for an invalid enum value lists the allowed values."""
    answer = await replica.post("/broadcast/event", {**EXAMPLES["event"]["data"], "risk_level": "none"})
    [error] = answer.json()["errors"]
    assert all(level in error["message"] for level in ("low", "medium", "high", "critical"))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/broadcast/nothing", 404),
        ("POST", "/broadcast/alert/forgotten", 404),
        ("GET", "/nothing", 404),
        ("GET", "/broadcast/event", 405),
        ("DELETE", "/broadcast/batch", 405),
        ("POST", "/health", 405),
    ],
)
async def test_wrong_route_or_method(replica: Replica, method: str, path: str, status: int) -> None:
    """An unknown route or kind of alert gets 404, a wrong method 405 with the allowed ones."""
    answer = await replica.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)
    assert answer.json()["status"] == status
    assert status == 404 or answer.headers["allow"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_media_type(replica: Replica, content_type: str) -> None:
    """A content type other than JSON gets 415."""
    answer = await replica.request(
        "POST", "/broadcast/alert/deleted", content=b'{"id": "x"}', headers={"Content-Type": content_type}
    )
    assert (answer.status_code, answer.headers["content-type"]) == (415, PROBLEM)


async def test_too_large(replica: Replica) -> None:
    """A body over the limit gets 413, announced or chunked; one of exactly the limit is accepted."""
    limit = 1048576
    padding = json.dumps({"id": "x", "unknown": ""}).encode()
    fits = json.dumps({"id": "x", "unknown": " " * (limit - len(padding))}).encode()
    assert len(fits) == limit

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    async with replica.http() as http:
        headers = {"Content-Type": "application/json"}
        assert (await http.post("/broadcast/alert/deleted", content=fits, headers=headers)).status_code == 202
        for content in (fits + b" ", 10 * fits, pieces()):
            answer = await http.post("/broadcast/alert/deleted", content=content, headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)
        assert (await http.post("/broadcast/alert/deleted", json={"id": "x"})).status_code == 202


@pytest.mark.parametrize("unknown", ["", "x" * 500_000])
async def test_an_event_too_large(replica: Replica, unknown: str) -> None:
    """The data of an event over EVENT_MAX_BYTES is a 413; unknown fields and whitespace do not count."""
    for reason, status in (("x" * 65_000, 202), ("x" * 65_536, 413)):
        content = json.dumps({"id": "x", "reason": reason, "unknown": unknown}, indent=1000).encode()
        headers = {"Content-Type": "application/json"}
        answer = await replica.request("POST", "/broadcast/alert/deleted", content=content, headers=headers)
        assert answer.status_code == status
        item = {"type": "alert_deleted", "data": {"id": "x", "reason": reason, "unknown": unknown}}
        answer = await replica.request("POST", "/broadcast/batch", json=[item | {"data": {"id": "y"}}, item])
        assert answer.status_code == status
    assert answer.headers["Content-Type"] == PROBLEM
    assert [error["field"] for error in answer.json()["errors"]] == ["[1].data"]


@pytest.mark.parametrize(("digits", "status"), [(640, 202), (641, 400)])
async def test_long_integers(replica: Replica, digits: int, status: int) -> None:
    """An integer has at most 640 digits, because reading one takes quadratic time."""
    body = {
        "batch_id": "b",
        "camera_id": "c",
        "detection_ids": [1, "LONG"],
        "detection_count": 2,
        "started_at": "t",
        "closed_at": "t",
    }
    content = json.dumps(body).replace('"LONG"', "9" * digits).encode()
    headers = {"Content-Type": "application/json"}
    answer = await replica.request("POST", "/broadcast/detection/batch", content=content, headers=headers)
    assert answer.status_code == status, answer.text


async def test_too_large_without_end(replica: Replica) -> None:
    """An endless body gets 413 as soon as it exceeds the limit."""
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(
        b"POST /broadcast/event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + 17 * (b"10000\r\n" + bytes(65536) + b"\r\n")
    )
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.transport.abort()


@pytest.mark.parametrize(
    ("path", "kind", "length", "status"),
    [
        ("/broadcast/event", "application/json", 50_000_000, 413),
        ("/broadcast/event", "text/plain", 10, 415),
        ("/nothing", "application/json", 10, 404),
    ],
)
async def test_refused_expect_continue(replica: Replica, path: str, kind: str, length: int, status: int) -> None:
    """If a request with `Expect: 100-continue` is refused, the connection is closed (RFC 9110, 10.1.1)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
    writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
    async with asyncio.timeout(20):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"connection: close\r\n") == 1
    writer.close()


async def test_keep_alive_and_pipelining(replica: Replica) -> None:
    """Pipelined requests on one connection are answered in order."""
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    body = json.dumps({"id": "x"}).encode()
    request = (
        b"POST /broadcast/alert/deleted HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    numbers = []
    async with asyncio.timeout(20):
        for count in (3, 2):
            writer.write(request * count)
            for _ in range(count):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 202 ")
                assert b"connection: close" not in head.lower()
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                numbers.append(json.loads(await reader.readexactly(length))["sequence"])
    writer.close()
    await writer.wait_closed()
    assert numbers == list(range(numbers[0], numbers[0] + 5))


async def test_broken_off_request(replica: Replica, client: Client) -> None:
    """A request that breaks off publishes nothing, and the service continues."""
    _, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(
        b"POST /broadcast/alert/deleted HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"id": "x"}'
    )
    await writer.drain()
    writer.transport.abort()
    receipt = (await replica.post("/broadcast/alert/deleted", {"id": "after"})).json()
    assert (await client.next())["sequence"] == receipt["sequence"]


async def test_keys(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """If API_KEYS is set, every publish needs a key, as Bearer token or X-API-Key; other routes do not."""
    replica = start(redis_url=valkey, redis_event_channel=channel, api_keys="first, second")
    path, body = "/broadcast/alert/deleted", {"id": "x"}
    for headers in ({}, {"X_API_Key": "third"}, {"Authorization": "Bearer firs"}, {"Authorization": "Basic first"}):
        answer = await replica.post(path, body, **headers)
        assert (answer.status_code, answer.headers["content-type"]) == (401, PROBLEM)
        assert answer.headers["www-authenticate"]
    assert (await replica.post(path, body, X_API_Key="second")).json()["sequence"] == 1
    assert (await replica.post(path, body, Authorization="Bearer first")).json()["sequence"] == 2
    for free in ("/health", "/health/live", "/health/ready", "/schema"):
        assert (await replica.request("GET", free)).status_code == 200


async def test_no_redis(start: ReplicaFactory) -> None:
    """Without Redis a publish gets 503 with Retry-After."""
    replica = start(ready=False, redis_url="unix:///nowhere/redis.sock")
    answer = await replica.post("/broadcast/alert/deleted", {"id": "x"})
    assert (answer.status_code, answer.headers["content-type"]) == (503, PROBLEM)
    assert int(answer.headers["retry-after"]) >= 1
    assert (await replica.post("/broadcast/alert/deleted", {"id": 7})).status_code == 400
    replica.stop(tolerate="CRITICAL kernel")


async def test_schema(replica: Replica) -> None:
    """/schema works without internet and describes every route with examples."""
    page = await replica.request("GET", "/schema", headers={"Accept": "text/html"}, follow_redirects=True)
    assert page.headers["content-type"].startswith("text/html")
    assert "//cdn" not in page.text
    document = (await replica.request("GET", "/schema/openapi.json")).json()
    assert set(document["paths"]) >= {route_of(kind) for kind in KINDS} | {"/broadcast/batch", "/health"}
    for kind in KINDS:
        operation = document["paths"][route_of(kind)]["post"]
        assert operation["requestBody"]["content"]["application/json"]["examples"]

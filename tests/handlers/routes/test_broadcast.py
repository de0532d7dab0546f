"""The publish routes: which body publishes which message, and the answer."""

import json
from typing import Any

import msgspec
import pytest

from handlers.openapi.examples import EXAMPLES
from kernel.messages import MAX_BATCH, MESSAGE_TYPES
from tests.handlers.http_app import ROUTES

EVENT = EXAMPLES["event"]["data"]


def emitted(value: Any) -> Any:
    """Return a message or its data as clients receive it."""
    return json.loads(msgspec.json.encode(value))


def test_every_family_has_its_route() -> None:
    """Every message type has a route."""
    assert set(ROUTES) == set(MESSAGE_TYPES)


@pytest.mark.parametrize("wire_type", ROUTES)
async def test_an_envelope_is_published(client: Any, broadcaster: Any, wire_type: str) -> None:
    """An envelope of the route's type is published with its timestamp."""
    envelope = EXAMPLES[wire_type]

    answer = await client.post(ROUTES[wire_type], json=envelope)

    assert answer.status_code == 202
    [[message]] = broadcaster.calls
    assert emitted(message) == emitted(msgspec.convert(envelope, MESSAGE_TYPES[wire_type]))


@pytest.mark.parametrize("wire_type", ROUTES)
async def test_bare_data_is_published(client: Any, broadcaster: Any, wire_type: str) -> None:
    """Bare data is published like its envelope."""
    answer = await client.post(ROUTES[wire_type], json=EXAMPLES[wire_type]["data"])

    assert answer.status_code == 202
    [[message]] = broadcaster.calls
    expected: Any = msgspec.convert(EXAMPLES[wire_type], MESSAGE_TYPES[wire_type])
    assert (type(message), emitted(message.data)) == (type(expected), emitted(expected.data))


async def test_a_publish_is_answered_with_its_receipt(client: Any, broadcaster: Any) -> None:
    """A publish is answered 202 with sequence, epoch and subscribers, and nothing else."""
    broadcaster.sequence = 41

    answer = await client.post(ROUTES["event"], json=EVENT)

    assert answer.status_code == 202
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"sequence": 42, "epoch": broadcaster.epoch, "subscribers": 2}
    assert "idempotent-replayed" not in answer.headers
    assert "connection" not in answer.headers


async def test_no_subscribers_is_a_success(client: Any, broadcaster: Any) -> None:
    """A publish without subscribers is a success."""
    broadcaster.subscribers = 0

    answer = await client.post(ROUTES["event"], json=EVENT)

    assert (answer.status_code, answer.json()["subscribers"]) == (202, 0)


async def test_a_batch_is_published_in_one_call(client: Any, broadcaster: Any) -> None:
    """A batch of any mix of types is one call of the kernel, and each item gets a receipt."""
    answer = await client.post("/broadcast/batch", json=list(EXAMPLES.values()))

    assert answer.status_code == 202
    receipts = answer.json()["receipts"]
    assert [receipt["sequence"] for receipt in receipts] == list(range(1, len(EXAMPLES) + 1))
    [messages] = broadcaster.calls
    assert [message.__struct_config__.tag for message in messages] == list(EXAMPLES)


async def test_one_bad_item_refuses_the_batch(client: Any, broadcaster: Any) -> None:
    """One invalid item refuses the batch; the path of the field starts with the item."""
    bad = {"type": "event", "data": EVENT | {"risk_score": 101}}

    answer = await client.post("/broadcast/batch", json=[*[EXAMPLES["event"]] * 3, bad])

    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["[3].data.risk_score"]
    assert broadcaster.calls == []


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
async def test_a_batch_has_1_to_1000_items(client: Any, broadcaster: Any, size: int) -> None:
    """A batch of no or more than 1,000 envelopes is refused."""
    answer = await client.post("/broadcast/batch", json=[EXAMPLES["alert_deleted"]] * size)

    assert answer.status_code == 400
    assert broadcaster.calls == []


async def test_the_largest_batch_is_accepted(client: Any) -> None:
    """A batch of 1,000 envelopes is accepted."""
    answer = await client.post("/broadcast/batch", json=[EXAMPLES["alert_deleted"]] * MAX_BATCH)

    assert len(answer.json()["receipts"]) == MAX_BATCH


async def test_an_envelope_of_another_type_is_refused(client: Any, broadcaster: Any) -> None:
    """An envelope of another type than the route's is answered 400."""
    answer = await client.post(ROUTES["alert_created"], json=EXAMPLES["alert_updated"])

    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["type"]
    assert broadcaster.calls == []


async def test_a_refused_body_names_the_field(client: Any, broadcaster: Any) -> None:
    """A 400 names the invalid fields, and lists the allowed values of an enum."""
    data = EVENT | {"risk_score": "75", "risk_level": "extreme"}

    answer = await client.post(ROUTES["event"], json={"type": "event", "data": data})

    problem = answer.json()
    messages = {error["field"]: error["message"] for error in problem["errors"]}
    assert set(messages) == {"data.risk_score", "data.risk_level"}
    assert all(level in messages["data.risk_level"] for level in ("low", "medium", "high", "critical"))
    assert broadcaster.calls == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[1]", b"null", b'"event"'])
async def test_what_is_no_json_object_is_refused(client: Any, broadcaster: Any, body: bytes) -> None:
    """A body that is not a JSON object is answered 400."""
    answer = await client.post(ROUTES["event"], content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert answer.json()["errors"]
    assert broadcaster.calls == []


class TestIdempotency:
    """`Idempotency-Key`."""

    async def test_the_first_receipt_is_returned_again(self, client: Any) -> None:
        """A key that was used before returns the first receipt, and a header says so."""
        headers = {"Idempotency-Key": "order-66"}

        first = await client.post(ROUTES["event"], json=EVENT, headers=headers)
        again = await client.post(ROUTES["event"], json=EVENT | {"risk_score": 1}, headers=headers)

        assert "idempotent-replayed" not in first.headers
        assert again.status_code == 202
        assert again.headers["idempotent-replayed"] == "true"
        assert again.json() == first.json()

    async def test_a_batch_is_returned_again(self, client: Any) -> None:
        """A batch with a key that was used before returns all its first receipts."""
        sent = {"json": [EXAMPLES["event"]] * 2, "headers": {"Idempotency-Key": "order-66"}}

        first = await client.post("/broadcast/batch", **sent)
        again = await client.post("/broadcast/batch", **sent)

        assert again.headers["idempotent-replayed"] == "true"
        assert again.json() == first.json()

    async def test_a_key_belongs_to_its_path(self, client: Any, broadcaster: Any) -> None:
        """The same key on another path is another key."""
        headers = {"Idempotency-Key": "order-66"}

        await client.post(ROUTES["alert_created"], json=EXAMPLES["alert_created"], headers=headers)
        other = await client.post(ROUTES["alert_updated"], json=EXAMPLES["alert_updated"], headers=headers)

        assert "idempotent-replayed" not in other.headers
        keys = [options.idempotency_key for options in broadcaster.options]
        assert keys == ["/broadcast/alert/created order-66", "/broadcast/alert/updated order-66"]

    async def test_a_trailing_slash_is_the_same_path(self, client: Any) -> None:
        """A path with a trailing slash is the same path."""
        headers = {"Idempotency-Key": "order-66"}

        await client.post(ROUTES["event"], json=EVENT, headers=headers)
        again = await client.post(f"{ROUTES['event']}/", json=EVENT, headers=headers)

        assert again.headers["idempotent-replayed"] == "true"

    async def test_the_body_must_be_valid_all_the_same(self, client: Any) -> None:
        """An invalid body is refused even with a key that was used before."""
        headers = {"Idempotency-Key": "order-66"}

        await client.post(ROUTES["event"], json=EVENT, headers=headers)
        again = await client.post(ROUTES["event"], json={}, headers=headers)

        assert again.status_code == 400

    @pytest.mark.parametrize("key", ["k", "!~" * 64, '"quoted"'])
    async def test_a_usable_key(self, client: Any, key: str) -> None:
        """A key has 1 to 128 visible ASCII characters."""
        answer = await client.post(ROUTES["event"], json=EVENT, headers={"Idempotency-Key": key})

        assert answer.status_code == 202

    async def test_blanks_around_a_key(self, make_app: Any, exchange: Any, broadcaster: Any) -> None:
        """Spaces and tabs around a key are not part of it (RFC 9110, 5.5)."""
        for key in (b"k", b"k \t", b" \tk"):
            headers = {"content-type": "application/json", "idempotency-key": key}
            answer = await exchange(make_app(), ROUTES["event"], [json.dumps(EVENT).encode()], headers)
            assert answer.status == 202
        assert len({options.idempotency_key for options in broadcaster.options}) == 1

    @pytest.mark.parametrize(
        "key", [b"", b" \t", b"k" * 129, b"two words", b"tab\there", "schlüssel".encode(), b"\x7f"]
    )
    async def test_an_unusable_key(self, make_app: Any, exchange: Any, broadcaster: Any, key: bytes) -> None:
        """An invalid key is answered 400."""
        headers = {"content-type": "application/json", "idempotency-key": key}

        answer = await exchange(make_app(), ROUTES["event"], [json.dumps(EVENT).encode()], headers)

        assert answer.status == 400
        assert b"Idempotency-Key" in answer.body
        assert broadcaster.calls == []


class TestTraceContext:
    """`traceparent`, `tracestate`, `baggage`."""

    PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def test_it_reaches_the_kernel(self, client: Any, broadcaster: Any) -> None:
        """The trace context of the producer is passed to the kernel."""
        headers = {"traceparent": self.PARENT, "tracestate": "vendor=1", "baggage": "site=north"}

        await client.post(ROUTES["event"], json=EVENT, headers=headers)

        [options] = broadcaster.options
        assert (options.traceparent, options.tracestate) == (self.PARENT, "vendor=1")
        assert options.baggage == "site=north"
        assert options.idempotency_key is None

    @pytest.mark.parametrize(
        "parent",
        [
            "",
            "nonsense",
            PARENT.upper(),
            f"{PARENT}-more",
            "ff" + PARENT[2:],
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ],
    )
    async def test_an_invalid_parent_is_ignored(self, client: Any, broadcaster: Any, parent: str) -> None:
        """An invalid traceparent is ignored together with its tracestate."""
        headers = {"traceparent": parent, "tracestate": "vendor=1"}

        answer = await client.post(ROUTES["event"], json=EVENT, headers=headers)

        assert answer.status_code == 202
        [options] = broadcaster.options
        assert (options.traceparent, options.tracestate) == (None, None)

    async def test_a_later_version_is_understood(self, client: Any, broadcaster: Any) -> None:
        """A traceparent of a later version is read like version 00."""
        await client.post(ROUTES["event"], json=EVENT, headers={"traceparent": f"01{self.PARENT[2:]}-more"})

        assert broadcaster.options[0].traceparent == self.PARENT

    async def test_two_parents_are_none(self, make_app: Any, exchange: Any, broadcaster: Any) -> None:
        """Several traceparent headers count as an invalid one."""
        headers = [("content-type", "application/json"), *[("traceparent", self.PARENT)] * 2]

        await exchange(make_app(), ROUTES["event"], [json.dumps(EVENT).encode()], headers)

        assert broadcaster.options[0].traceparent is None

    async def test_several_tracestates_are_one(self, make_app: Any, exchange: Any, broadcaster: Any) -> None:
        """Several tracestate headers are joined as a list."""
        headers = [("content-type", "application/json"), ("traceparent", self.PARENT)]
        headers += [("tracestate", "a=1"), ("tracestate", "b=2")]

        await exchange(make_app(), ROUTES["event"], [json.dumps(EVENT).encode()], headers)

        assert broadcaster.options[0].tracestate == "a=1, b=2"

    async def test_it_is_bounded(self, client: Any, broadcaster: Any) -> None:
        """Trace context that is longer than its specification requires is ignored."""
        headers = {"traceparent": self.PARENT, "tracestate": "a" * 513, "baggage": "b" * 8193}

        await client.post(ROUTES["event"], json=EVENT, headers=headers)

        [options] = broadcaster.options
        assert (options.traceparent, options.tracestate, options.baggage) == (self.PARENT, None, None)


async def test_a_publish_during_the_drain_ends_its_connection(client: Any, broadcaster: Any) -> None:
    """While draining, publishes are accepted with `Connection: close`."""
    broadcaster.draining = True

    single = await client.post(ROUTES["event"], json=EVENT)
    batch = await client.post("/broadcast/batch", json=[EXAMPLES["event"]])

    for answer in (single, batch):
        assert (answer.status_code, answer.headers["connection"]) == (202, "close")

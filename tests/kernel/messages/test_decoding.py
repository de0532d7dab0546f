"""Decoding of request bodies: which are accepted, and the errors of those that are not."""

import contextlib
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.errors import EventTooLarge, MessageInvalid
from kernel.messages.decoding import MAX_BATCH, decode_batch, decode_message
from kernel.messages.invalid_fields import INSPECTED_BYTES
from kernel.messages.messages import MESSAGE_TYPES, EventMessage

EVENT: dict[str, Any] = {
    "id": 1,
    "event_id": 7,
    "batch_id": "b",
    "camera_id": "c",
    "risk_score": 75,
    "risk_level": "high",
    "summary": "s",
    "reasoning": "r",
}
ENVELOPE = {"type": "event", "data": EVENT}
CAMERA = {
    "event_type": "camera.error",
    "camera_id": "c",
    "camera_name": "n",
    "status": "error",
    "timestamp": "t",
}
WORKER = {"event_type": "worker.started", "worker_name": "w", "worker_type": "detection", "timestamp": "t"}
BATCH: dict[str, Any] = {"batch_id": "b", "camera_id": "c", "detection_count": 1, "started_at": "t", "closed_at": "t"}


def encoded(value: Any) -> bytes:
    """Return a value as the body of a request; bytes are returned unchanged."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def refusal(wire_type: str, body: Any) -> list[tuple[str, str]]:
    """Return the errors (field, message) of an invalid body for a single message."""
    with pytest.raises(MessageInvalid) as caught:
        decode_message(wire_type, encoded(body))
    return [(error.field, error.message) for error in caught.value.errors]


def batch_refusal(body: Any) -> list[tuple[str, str]]:
    """Return the errors (field, message) of an invalid batch."""
    with pytest.raises(MessageInvalid) as caught:
        decode_batch(encoded(body))
    return [(error.field, error.message) for error in caught.value.errors]


class TestBody:
    """A body is either bare data or an envelope."""

    @pytest.mark.parametrize(
        "body",
        [
            EVENT,
            ENVELOPE,
            {"data": EVENT, "type": "event", "more": 1},
            {"data": EVENT},
            {"data": EVENT, "timestamp": 5},
            {**EVENT, "data": {"risk_score": 900}},
            {**EVENT, "data": None},
            b" \r\n\t" + json.dumps(EVENT).encode() + b"\n ",
            json.dumps(ENVELOPE).replace("type", "\\u0074ype").encode(),
        ],
    )
    def test_accepted(self, body: Any) -> None:
        """A body is an envelope if it has a `type`, or has `data` and no field of the bare data."""
        assert decode_message("event", encoded(body)) == decode_message("event", encoded(EVENT))

    @pytest.mark.parametrize(
        ("wire_type", "body", "path"),
        [
            ("event", {**EVENT, "risk_score": 101}, "risk_score"),
            ("event", {"data": {**EVENT, "risk_score": 101}}, "data.risk_score"),
            ("event", {"type": "event", "data": {**EVENT, "risk_score": 101}}, "data.risk_score"),
            ("event", {**EVENT, "type": "event"}, "data"),
            ("event", {"type": "event", "data": None}, "data"),
            ("event", {"data": 5}, "data"),
            ("service_status", {"data": {"service": "a", "status": "failed"}, "name": 5, "status": "failed"}, "name"),
            ("service_status", {"data": {"service": "a", "status": "failed"}, "timestamp": None}, "timestamp"),
            ("worker_status", {"type": "worker_status", "timestamp": 5, "data": None}, "data timestamp"),
            (
                "detection.new",
                {"data": {}, "timestamp": 5, "label": "x", "detection_id": 1},
                "batch_id camera_id confidence timestamp",
            ),
        ],
    )
    def test_paths(self, wire_type: str, body: Any, path: str) -> None:
        """An error names the field by its path in the body as it was sent."""
        assert " ".join(field for field, _ in refusal(wire_type, body)) == path

    @pytest.mark.parametrize("sent", ["alert_created", "EVENT", "", None, 5, [], {"a": 1}])
    def test_wrong_type(self, sent: Any) -> None:
        """An envelope of another type is refused; the error names `type` and the allowed value."""
        assert refusal("event", {"type": sent, "data": EVENT}) == [("type", f"must be event, not {json.dumps(sent)}")]


class TestWords:
    """The error message of a field."""

    def test_every_field(self) -> None:
        """Every invalid field is named, with the allowed values and the value that was sent."""
        bad = {**EVENT, "id": True, "risk_score": "75", "risk_level": "zz", "started_at": 4, "summary": None}
        del bad["camera_id"]
        assert refusal("event", {"type": "event", "data": bad}) == [
            ("data.id", "must be an integer, not true"),
            ("data.camera_id", "is required: a string"),
            ("data.risk_score", 'must be an integer from 0 to 100, not "75"'),
            ("data.risk_level", 'must be one of low, medium, high, critical, not "zz"'),
            ("data.summary", "must be a string, not null"),
            ("data.started_at", "must be a string or null, not 4"),
        ]

    def test_nested(self) -> None:
        """The path goes down into objects, and to the first invalid element of a list."""
        assert refusal("detection.new", {"bbox": {"x": 2, "width": False, "height": 1}, "confidence": 2})[-3:] == [
            ("bbox.x", "must be a number from 0 to 1, not 2"),
            ("bbox.y", "is required: a number from 0 to 1"),
            ("bbox.width", "must be a number from 0 to 1, not false"),
        ]
        batch = {"detection_ids": [1, 2, "3", "4"], "detection_count": -1}
        assert ("data.detection_ids[2]", 'must be an integer, not "3"') in refusal("detection.batch", {"data": batch})
        assert ("data.detection_count", "must be an integer of at least 0, not -1") in refusal(
            "detection.batch", {"data": batch}
        )
        assert refusal("summary_update", {"daily": []}) == [("daily", "must be an object or null, not []")]
        assert ("detection_ids", "must be a list, not {}") in refusal("detection.batch", {"detection_ids": {}})

    def test_exact_enum(self) -> None:
        """The error of an enum lists the allowed values, including null if it is allowed."""
        assert refusal("camera_status", {**CAMERA, "event_type": "camera.ERROR", "previous_status": "zz"}) == [
            (
                "event_type",
                'must be one of camera.online, camera.offline, camera.error, camera.updated, not "camera.ERROR"',
            ),
            ("previous_status", 'must be one of online, offline, error, unknown or null, not "zz"'),
        ]

    def test_objects(self) -> None:
        """The error of an object that cannot be passed through says why."""
        assert refusal("camera_status", {**CAMERA, "details": "x"}) == [
            ("details", 'must be an object or null, not "x"')
        ]
        body = json.dumps({**CAMERA, "details": {"a": 0}}).replace('"a": 0', '"a": 1e999')
        assert refusal("camera_status", body.encode()) == [
            ("details", "must not have numbers beyond the range of a 64-bit float")
        ]

    def test_service(self) -> None:
        """If both `service` and `name` are absent, the error names `service`."""
        assert refusal("service_status", {"data": {"status": "failed"}}) == [("data.service", "is required: a string")]
        assert refusal("service_status", {"status": "failed"}) == [("service", "is required: a string")]

    def test_long_value(self) -> None:
        """A long invalid value is cut in the error."""
        ((_, words),) = refusal("event", {**EVENT, "risk_level": "ü" * 1000})
        assert len(words) < 120
        assert words.endswith("…")

    @pytest.mark.parametrize(
        ("text", "path"),
        [
            ('{"id":"x",%s', ""),
            ('{"type":"zz","type":"event","data":{%s}', ""),
            ('{"data":{"id":"x"},"data":{%s}}', ""),
            ('{"data":{"id":"x",%s}}', "data"),
        ],
    )
    def test_field_twice(self, text: str, path: str) -> None:
        """An invalid field that is hidden by a later valid one of the same name is refused with an explanation."""
        ((field, words),) = refusal("event", (text % json.dumps(EVENT)[1:]).replace("}}}", "}}").encode())
        assert (field, words.removeprefix("the body ")) == (path, "must not have a field twice")


class TestWholeBody:
    """An error of the body as a whole has an empty path."""

    @pytest.mark.parametrize("body", [b"[]", b"5", b'"x"', b"null", b"[{}]"])
    def test_not_an_object(self, body: bytes) -> None:
        """A message must be a JSON object."""
        assert refusal("event", body) == [("", f"the body must be an object, not {body.decode()}")]

    @pytest.mark.parametrize("body", [b"", b" ", b"\r\n"])
    def test_empty(self, body: bytes) -> None:
        """The error of an empty body says that it is empty."""
        assert refusal("event", body) == batch_refusal(body) == [("", "the body must be JSON; it is empty")]

    @pytest.mark.parametrize("body", [b"{", b"{]", b"nul", b"{'a':1}", b"{} x", b'{"id":NaN}'])
    def test_not_json(self, body: bytes) -> None:
        """A body that is not JSON is refused, with the reason."""
        for errors in (refusal("event", body), batch_refusal(body)):
            ((field, words),) = errors
            assert field == ""
            assert words.startswith("the body must be JSON; ")

    @pytest.mark.parametrize("body", [b'{"id":"x",', b'[{"type":"zz"},'])
    def test_malformed_after_an_invalid_field(self, body: bytes) -> None:
        """JSON that is malformed after an invalid field is reported as malformed JSON."""
        ((field, words),) = batch_refusal(body) if body[:1] == b"[" else refusal("event", body)
        assert (field, words[:18]) == ("", "the body must be J")

    @pytest.mark.parametrize(
        "body",
        [
            {**EVENT, "summary": "BAD"},
            {**EVENT, "dropped": "BAD"},
            {**EVENT, "BAD": 1},
            {**EVENT, "id": "x", "dropped": {"BAD": []}},
            {**EVENT, "data": "BAD"},
        ],
    )
    @pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"])
    def test_not_utf8(self, body: dict[str, Any], bad: bytes) -> None:
        """The whole body must be UTF-8, including fields that are dropped."""
        text = encoded(body).replace(b"BAD", bad)
        for field, words in refusal("event", text) + batch_refusal(b"[" + text + b"]"):
            assert field == ""
            assert words.startswith("the body must be UTF-8; byte ")

    @pytest.mark.parametrize("half", ["\\ud800", "\\udc00", "\\ud800\\ud800", "\\udc00\\ud800", "\\ud83dx"])
    @pytest.mark.parametrize("name", ["summary", "dropped", "data"])
    def test_half_a_surrogate_pair(self, name: str, half: str) -> None:
        """An escape of half a character stands for U+FFFD, also where nobody reads it."""
        body = encoded({**EVENT, name: "HALF"}).replace(b"HALF", half.encode())
        message = decode_message("event", body)
        assert isinstance(message, EventMessage)
        if name == "summary":
            assert message.data.summary.strip("\ufffd") in ("", "x")
        [same] = decode_batch(b'[{"type":"event","data":' + body + b"}]")
        assert same == message

    def test_half_a_surrogate_pair_in_a_bad_body(self) -> None:
        """A body with such an escape and a bad field is refused for the field."""
        body = encoded({**EVENT, "risk_score": 101, "summary": "HALF"}).replace(b"HALF", b"\\ud800")
        assert [field for field, _ in refusal("event", body)] == ["risk_score"]

    def test_half_a_surrogate_pair_in_a_suspect_body(self) -> None:
        """The escape is replaced before repeated fields are removed from a body that may repeat many."""
        numbers = b",".join([b"1e-300"] * 3000)
        body = (
            encoded({**EVENT, "summary": "HALF"}).replace(b"HALF", b"\\ud800")[:-1] + b',"dropped":[' + numbers + b"]}"
        )
        message = decode_message("event", body)
        assert isinstance(message, EventMessage)
        assert message.data.summary == "\ufffd"

    def test_a_byte_order_mark(self) -> None:
        """A byte order mark before the body is ignored, but only one, and only there."""
        mark = b"\xef\xbb\xbf"
        assert decode_message("event", mark + encoded(EVENT)) == decode_message("event", encoded(EVENT))
        batch = encoded([ENVELOPE])
        assert decode_batch(mark + batch) == decode_batch(batch)
        assert refusal("event", 2 * mark + encoded(EVENT))[0][0] == ""
        assert refusal("event", encoded(EVENT) + mark)[0][0] == ""

    @pytest.mark.parametrize(
        "start", ['{"id":1,"dropped":', '{"id":"x","dropped":', '{"type":5,"data":', "[", '[{"type":']
    )
    @pytest.mark.parametrize("closed", [True, False])
    def test_nested_beyond_measure(self, start: str, closed: bool) -> None:
        """Nesting that would exhaust the stack is refused like any other error."""
        text = start + "[" * 100_000 + ("]" * 100_000 + "}" if closed else "")
        for errors in (refusal("event", text.encode()), batch_refusal(b"[" + text.encode() + b"]")):
            assert errors[0][0] in ("", "[0]")

    def test_details_nested_beyond_measure(self) -> None:
        """Nesting that would exhaust the stack is refused in `details` too."""
        text = json.dumps({**CAMERA, "details": {"a": "DEEP"}}).replace('"DEEP"', "[" * 50_000 + "]" * 50_000)
        assert refusal("camera_status", text.encode()) == [("", "the body must not be nested so deeply")]


class TestFreeObjects:
    """`details` and `metadata` are passed on as they came, without whitespace."""

    @pytest.mark.parametrize("wire_type", ["camera_status", "worker_status"])
    @pytest.mark.parametrize("enveloped", [False, True])
    def test_bytes_unchanged(self, wire_type: str, enveloped: bool) -> None:
        """Numbers, escapes and repeated keys stay as they were sent."""
        name, data = ("details", CAMERA) if wire_type == "camera_status" else ("metadata", WORKER)
        sent = rb'{"a":[1e2,0.10,-0,123456789012345678901234567890],"a":"\u0041\/"}'
        body = encoded({**data, name: "FREE"})
        body = body.replace(b'"FREE"', sent.replace(b",", b" ,\n"))
        if enveloped:
            body = b'{"type":"%b","data":%b}' % (wire_type.encode(), body)
        message: Any = decode_message(wire_type, body)
        assert bytes(getattr(message.data, name)) == sent
        assert msgspec.json.encode(message.data).endswith(sent + b"}")

    @pytest.mark.parametrize("sent", [" null ", None])
    def test_none(self, sent: str | None) -> None:
        """Null and an absent field are None."""
        body = encoded(CAMERA | ({} if sent is None else {"details": 7})).replace(b"7", (sent or "").encode())
        message: Any = decode_message("camera_status", body)
        assert message.data.details is None

    @pytest.mark.parametrize(
        ("sent", "words"),
        [
            ("5", "must be an object or null, not 5"),
            ('["x"]', 'must be an object or null, not ["x"]'),
            ('{"a":[1e999]}', "must not have numbers beyond the range of a 64-bit float"),
            ('{"a":%s}' % ("[" * 100 + "]" * 100), "must not be nested deeper than 100 levels"),
        ],
    )
    def test_faults(self, sent: str, words: str) -> None:
        """An invalid free object is named, with all other invalid fields."""
        body = encoded({**CAMERA, "details": "FREE"}).replace(b'"FREE"', sent.encode())
        assert refusal("camera_status", body) == [("details", words)]
        assert refusal("camera_status", b'{"data":%b}' % body) == [("data.details", words)]
        (item,) = batch_refusal(
            b'[{"type":"event","data":%b},{"type":"camera_status","data":%b}]' % (encoded(EVENT), body)
        )
        assert item == ("[1].data.details", words)
        both = body.replace(b'"camera_id": "c"', b'"camera_id": 5')
        assert refusal("camera_status", both) == [("camera_id", "must be a string, not 5"), ("details", words)]

    def test_large_one_beside_other_errors(self) -> None:
        """A free object of more than 64 KiB is not inspected while other fields are invalid."""
        body = encoded({**CAMERA, "camera_id": 5, "details": [" " * INSPECTED_BYTES]})
        assert refusal("camera_status", body) == [("camera_id", "must be a string, not 5")]

    def test_too_large(self) -> None:
        """A free object of more than `max_bytes`, without whitespace, is refused."""
        body = encoded({**CAMERA, "details": {"a": "x" * 92}}).replace(b'"a"', b"  " * 200 + b'"a"')
        assert decode_message("camera_status", body, 100)
        with pytest.raises(EventTooLarge, match="data: must not be larger than 99 bytes as compact JSON") as caught:
            decode_message("camera_status", body, 99)
        assert (caught.value.limit, caught.value.index) == (99, None)
        batch = b'[{"type":"event","data":%b},{"type":"camera_status","data":%b}]' % (encoded(EVENT), body)
        assert len(decode_batch(batch, 100)) == 2
        with pytest.raises(EventTooLarge) as caught:
            decode_batch(batch, 99)
        assert (caught.value.index, caught.value.errors[0].field) == (1, "[1].data")


SMALL, LARGE = 64_500, 2**20 - 2000
DETECTION = (
    b'"detection_id":1,"batch_id":"b","camera_id":"c","label":"l","timestamp":"t",'
    b'"bbox":{"x":1,"y":1,"width":1,"height":1%b}'
)


def repeated(text: bytes, size: int) -> bytes:
    """Return a text and a comma, as often as it fits into a size."""
    return (text + b",") * (size // (len(text) + 1))


def camera(details: bytes, **changes: Any) -> bytes:
    """Return a body with these details."""
    return encoded({**CAMERA, **changes, "details": "FREE"}).replace(b'"FREE"', details)


def numbers(text: bytes, size: int) -> bytes:
    """Return details full of a number."""
    return b'{"a":[%b1]}' % repeated(text, size)


def unknown(size: int) -> bytes:
    """Return different unknown fields."""
    return b",".join(b'"k%x":1' % index for index in range(size // 11))


class TestCost:
    """No body takes much longer than its size justifies; the bounds are ten times what was measured, or more."""

    @pytest.mark.parametrize(
        ("seconds", "max_bytes", "wire_type", "body"),
        [
            (0.05, 65_536, "camera_status", camera(numbers(b"1e308", SMALL))),
            (0.05, 65_536, "camera_status", camera(numbers(b"1e-310", SMALL))),
            (0.05, 65_536, "camera_status", camera(numbers(b"1e308", SMALL), status=5)),
            (0.1, 65_536, "camera_status", camera(numbers(b"1e308", LARGE))),
            (0.1, 65_536, "camera_status", camera(numbers(b"1e308", LARGE), status=5)),
            (0.2, 65_536, "camera_status", camera(numbers(b"[" * 90 + b"]" * 90, LARGE))),
            (1.0, LARGE, "camera_status", camera(numbers(b"1e308", LARGE - 200))),
            (0.03, 65_536, "event", b'{%b,"data":%b}' % (unknown(LARGE), encoded(EVENT))),
            (0.03, 65_536, "event", b'{%b,"risk_score":101}' % unknown(LARGE)),
            (0.03, 65_536, "event", b'{%b,"type":"event","data":{%b}}' % (unknown(LARGE // 2), unknown(LARGE // 2))),
            (0.1, 65_536, "detection.new", b"{%b%b}" % (repeated(b'"confidence":1e-308', LARGE), DETECTION % b"")),
            (
                0.1,
                65_536,
                "detection.new",
                b'{"confidence":1,%b}' % (DETECTION % (b"," + repeated(b'"x":1E-308', LARGE) + b'"x":1')),
            ),
            (0.03, 65_536, "service_status", b'{%b"status":"FAILED"}' % repeated(b'"status":"FAILED"', LARGE)),
        ],
        ids=str,
    )
    def test_single(self, seconds: float, max_bytes: int, wire_type: str, body: bytes) -> None:
        """A single message, whether it is valid or not."""
        begin = time.thread_time()
        with contextlib.suppress(MessageInvalid):
            decode_message(wire_type, body, max_bytes)
        assert time.thread_time() - begin < seconds

    @pytest.mark.parametrize(
        ("seconds", "item"),
        [
            (0.9, b'{"type":"camera_status","data":%b}' % camera(numbers(b"1e308", SMALL))),
            (0.2, b'{"type":"detection.new","data":{%b%b}}' % (b'"confidence":1e-308,' * 400, DETECTION % b"")),
            (0.1, b'{%b"type":5}' % (b'"type":1e-308,' * 400)),
            (0.1, b"[%b1]" % (b"1e-308," * 400)),
            (0.1, b"0"),
        ],
        ids=["details", "repeated", "no type", "no object", "numbers"],
    )
    def test_batch(self, seconds: float, item: bytes) -> None:
        """A batch of 1 MiB, whether it is valid or not."""
        body = b"[%b%b]" % (repeated(item, LARGE - len(item)), item)
        begin = time.thread_time()
        with contextlib.suppress(MessageInvalid):
            decode_batch(body, 65_536)
        assert time.thread_time() - begin < seconds

    def test_meaning_unchanged(self) -> None:
        """Of fields that are repeated very often, the last one counts, as in other bodies."""
        fields = repeated(b'"confidence":1e-308', LARGE // 2)
        body = b'{%b%b,"confidence":0.5}' % (fields, DETECTION % b"")
        expected = decode_message("detection.new", b'{%b,"confidence":0.5}' % (DETECTION % b""))
        assert decode_message("detection.new", body) == expected
        item = b'{"type":"detection.new","data":%b}' % body
        assert decode_message("detection.new", item) == expected
        assert decode_batch(b"[%b]" % item) == [expected]

    def test_late_element(self) -> None:
        """The error of an element far behind in a list does not repeat its value."""
        body = encoded({**BATCH, "detection_ids": [1] * 2000 + ["x"]})
        assert refusal("detection.batch", body) == [("detection_ids[2000]", "must be an integer")]


class TestBatch:
    """A batch is an array of 1 to 1,000 envelopes of any types."""

    def test_mix(self) -> None:
        """The messages of a batch keep their order, with defaults and lower-case enums like single messages."""
        service = {"data": {"name": "nvr", "status": "FAILED"}, "type": "service_status"}
        messages = decode_batch(encoded([service, ENVELOPE, service]))
        assert [type(message).__name__ for message in messages] == [
            "ServiceStatusMessage",
            "EventMessage",
            "ServiceStatusMessage",
        ]
        assert all(json.loads(msgspec.json.encode(message)).get("timestamp") for message in messages[::2])
        assert messages[0].data == decode_message("service_status", encoded(service)).data

    @pytest.mark.parametrize("count", [1, MAX_BATCH])
    def test_size(self, count: int) -> None:
        """A batch of 1 and one of 1,000 messages are accepted."""
        assert decode_batch(encoded([ENVELOPE] * count)) == [decode_message("event", encoded(EVENT))] * count

    @pytest.mark.parametrize(
        "body", [[], [ENVELOPE] * (MAX_BATCH + 1), [5] * (MAX_BATCH + 1), ENVELOPE, {}, 5, None, "x"]
    )
    def test_wrong_size(self, body: Any) -> None:
        """A batch of another size, or a body that is not an array, is refused as a whole."""
        assert batch_refusal(body) == [("", "the body must be an array of 1 to 1,000 envelopes")]

    @pytest.mark.parametrize(
        ("item", "field", "words"),
        [
            ({"type": "event", "data": {**EVENT, "risk_score": 101}}, "[3].data.risk_score", "must be an integer from"),
            ({"type": "event"}, "[3].data", "is required: an object"),
            (
                {"type": "detection.batch", "data": {"detection_ids": [1, None]}},
                "[3].data.detection_ids[1]",
                "must be an",
            ),
            ({"data": EVENT}, "[3].type", "is required: one of alert_acknowledged, "),
            (EVENT, "[3].type", "is required: one of alert_acknowledged, "),
            ({"type": "zz", "data": EVENT}, "[3].type", "must be one of alert_acknowledged, "),
            ({"type": "a` - at `$[7]`", "data": EVENT}, "[3].type", "must be one of alert_acknowledged, "),
            ({"type": None, "data": EVENT}, "[3].type", "must be one of alert_acknowledged, "),
            ({"type": "service_status", "data": {"status": "failed"}}, "[3].data.service", "is required: a string"),
            (5, "[3]", "must be an object, not 5"),
            ([], "[3]", "must be an object, not []"),
        ],
    )
    def test_bad_item(self, item: Any, field: str, words: str) -> None:
        """In a batch, the path starts with the index of the item, and `type` is required."""
        errors = dict(batch_refusal([ENVELOPE, ENVELOPE, ENVELOPE, item, 5]))
        assert errors[field].startswith(words)

    def test_types_listed(self) -> None:
        """The error of an unknown type lists all types."""
        ((_, words),) = batch_refusal([{"type": "zz", "data": {}}])
        assert all(wire_type in words for wire_type in MESSAGE_TYPES)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class TestAnything:
    """Any body is either refused with an error message, or decoded into messages that can be emitted."""

    @given(details=st.dictionaries(st.text(), json_values, max_size=4))
    def test_objects_unchanged(self, details: dict[str, Any]) -> None:
        """The value of `details` is passed through unchanged."""
        message = decode_message("camera_status", encoded({**CAMERA, "details": details}))
        emitted = json.loads(msgspec.json.encode(message))["data"]["details"]
        assert emitted == details

    @given(body=st.dictionaries(st.sampled_from([*EVENT, "data", "type", "x"]), json_values) | json_values)
    def test_values(self, body: Any) -> None:
        """Every JSON value is either accepted, or refused with MessageInvalid and at least one error."""
        for wire_type in ("event", "summary_update", "service_status"):
            try:
                message = decode_message(wire_type, encoded(body))
            except MessageInvalid as invalid:
                assert invalid.errors  # noqa: PT017
            else:
                msgspec.json.encode(message).decode()

    @given(
        noise=st.binary(max_size=8)
        | st.sampled_from([b'"', b"}", b"]", b'"id":"x",', b"\\ud800", b"\\u0041", b"1e999"]),
        at=st.floats(0, 1),
    )
    def test_damaged(self, noise: bytes, at: float) -> None:
        """A damaged body is either refused with an error message or decoded into a message that can be emitted."""
        good = encoded([ENVELOPE])
        cut = int(at * len(good))
        try:
            messages = decode_batch(good[:cut] + noise + good[cut:])
        except MessageInvalid as invalid:
            assert invalid.errors  # noqa: PT017
        else:
            assert isinstance(messages[0], EventMessage)
            msgspec.json.encode(messages).decode()

"""JSON objects and arrays, split without decoding their values."""

import pytest
from msgspec import DecodeError, ValidationError

from kernel.messages.messages import DetectionNewMessage, EventMessage, SummaryUpdateMessage
from kernel.messages.raw_fields import MAX_ELEMENTS, raw_elements, raw_fields, without_repeated_fields


def test_fields() -> None:
    """The fields of the struct are returned, with its tag; of a repeated field the last one counts."""
    found = raw_fields(EventMessage, b'{"data" : 1, "x": [1e999], "type":"a","data":{"b": 2}}')
    assert {name: bytes(raw) for name, raw in found.items()} == {"type": b'"a"', "data": b'{"b": 2}'}
    assert raw_fields(EventMessage, b'{"x":1}') == {}


@pytest.mark.parametrize("text", [b"[]", b"5", b"null"])
def test_no_object(text: bytes) -> None:
    """A value that is not an object has no fields."""
    with pytest.raises(ValidationError):
        raw_fields(EventMessage, text)


def test_malformed() -> None:
    """Malformed JSON is refused, even after the fields."""
    with pytest.raises(DecodeError):
        raw_fields(EventMessage, b'{"data":1,"x":')


def test_without_repeated_fields() -> None:
    """Repeated and unknown fields are removed at every level; values that are not objects are unchanged."""
    text = b'{"data":{"hourly":{"id":1,"id":2,"z":[]},"daily":null,"z":1},"data":{"daily":{"id":3}, "hourly":[1]}}'
    assert without_repeated_fields(SummaryUpdateMessage, text) == b'{"data":{"hourly":[1],"daily":{"id":3}}}'
    text = b'{"data":{"bbox":{"x":1,"y":2,"x":3}},"type":"detection.new","type":5}'
    assert without_repeated_fields(DetectionNewMessage, text) == b'{"type":5,"data":{"bbox":{"x":3,"y":2}}}'


def test_elements() -> None:
    """The first elements of an array are returned."""
    assert [bytes(raw) for raw in raw_elements(b'[1, "a" ,{"b": 2}]')] == [b"1", b'"a"', b'{"b": 2}']
    assert raw_elements(b"[]") == []
    assert len(raw_elements(b"[%b1]" % (b"1," * 5000))) == MAX_ELEMENTS

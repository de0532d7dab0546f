"""The structs as which messages are decoded, and the two forms of a body."""

import pytest

from kernel.messages.forms import DECODED, FORMS, is_envelope
from kernel.messages.messages import MESSAGE_TYPES


@pytest.mark.parametrize("wire_type", MESSAGE_TYPES)
def test_same_fields(wire_type: str) -> None:
    """Each struct has the fields, the tag and the data's fields of its message."""
    message, decoded = MESSAGE_TYPES[wire_type], DECODED[wire_type]
    assert decoded.__struct_fields__ == message.__struct_fields__
    assert decoded.__struct_config__.tag == wire_type
    data = message.__annotations__["data"]
    assert set(FORMS[wire_type].data.__struct_fields__) == set(data.__struct_fields__)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"type":1}', True),
        (b'{"data":{},"x":1}', True),
        (b'{"data":{},"id":1}', False),
        (b'{"id":1}', False),
        (b"{}", False),
    ],
)
def test_is_envelope(body: bytes, expected: bool) -> None:
    """A body is an envelope if it has a `type`, or has `data` and no field of the bare data."""
    assert is_envelope(FORMS["event"], body) is expected

"""The examples that OpenAPI and the demo show."""

import json

import msgspec
import pytest

from handlers.openapi.examples import EXAMPLES
from kernel.messages import MESSAGE_TYPES, decode_batch, decode_message


def test_one_each() -> None:
    """Section 2, /schema: there is an example of every message type."""
    assert list(EXAMPLES) == list(MESSAGE_TYPES)


@pytest.mark.parametrize("wire_type", EXAMPLES)
def test_decodes(wire_type: str) -> None:
    """Section 2, /schema: each example is a good body, as an envelope and bare, and shows every field as emitted."""
    envelope = EXAMPLES[wire_type]
    message = decode_message(wire_type, json.dumps(envelope).encode())
    assert decode_message(wire_type, json.dumps(envelope["data"]).encode()).data == message.data
    shown = json.loads(msgspec.json.encode(message))
    assert shown["data"] == dict.fromkeys(shown["data"]) | envelope["data"]
    assert shown | {"data": envelope["data"]} == envelope


def test_batch() -> None:
    """Section 2, /broadcast/batch: the examples together are a good batch."""
    assert len(decode_batch(json.dumps(list(EXAMPLES.values())).encode())) == len(EXAMPLES)

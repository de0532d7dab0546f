"""The examples of messages."""

import json

import msgspec
import pytest

from handlers.openapi.examples import EXAMPLES
from kernel.messages import MESSAGE_TYPES, decode_batch, decode_message


def test_one_each() -> None:
    """Every message type has an example."""
    assert list(EXAMPLES) == list(MESSAGE_TYPES)


@pytest.mark.parametrize("wire_type", EXAMPLES)
def test_decodes(wire_type: str) -> None:
    """Each example is valid, as an envelope and as bare data, and shows every field that the service emits."""
    envelope = EXAMPLES[wire_type]
    message = decode_message(wire_type, json.dumps(envelope).encode())
    assert decode_message(wire_type, json.dumps(envelope["data"]).encode()).data == message.data
    shown = json.loads(msgspec.json.encode(message))
    assert shown["data"] == dict.fromkeys(shown["data"]) | envelope["data"]
    assert shown | {"data": envelope["data"]} == envelope


def test_batch() -> None:
    """All examples together are a valid batch."""
    assert len(decode_batch(json.dumps(list(EXAMPLES.values())).encode())) == len(EXAMPLES)

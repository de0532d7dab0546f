"""The encoding of spans: each attribute that recurs is encoded once, and the bytes are those of the library."""

from types import ModuleType
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common._internal import trace_encoder
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, TraceFlags

from telemetry.encoding import FUNCTION, encode_attributes_once

CONTEXT = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
VALUES: list[Any] = [1, True, 1.0, "1", 0, False, 0.0, -0.0, "", b"1", None, ("a", "b"), (1, True), {"a": 1}]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The attributes that the library's own function was asked to encode, since its replacement."""
    asked: list[Any] = []
    original = getattr(trace_encoder, FUNCTION)  # fails if a new version of the library has none

    def encode(attributes: Any) -> Any:
        asked.append(attributes)
        return original(attributes)

    monkeypatch.setattr(trace_encoder, FUNCTION, encode)
    return asked


def span(**attributes: Any) -> ReadableSpan:
    """Return a span with these attributes, and with a link."""
    return ReadableSpan("x", CONTEXT, attributes=attributes, links=[Link(CONTEXT, attributes)])


def test_the_same_bytes(encoded: list[Any]) -> None:
    """Spans are encoded as without the replacement, whatever the types of equal values are."""
    spans = [span(), *(span(a=value, b="x") for value in VALUES * 2), span(a="x", b="x")]
    before = encode_spans(spans).SerializeToString(deterministic=True)
    encode_attributes_once()
    assert encode_spans(spans).SerializeToString(deterministic=True) == before
    assert encoded


def test_once(encoded: list[Any]) -> None:
    """An attribute that recurs is encoded once with the library that is installed, except floats."""
    encode_attributes_once()
    encode_attributes_once()
    for _ in range(3):
        encode_spans([span(route="/broadcast/event", status=202, age=0.5)] * 100)
    assert encoded.count({"route": "/broadcast/event"}) == encoded.count({"status": 202}) == 1
    assert encoded.count({"age": 0.5}) == 600


def test_bounded(encoded: list[Any]) -> None:
    """Values that do not recur do not displace those that do, and are not kept for ever."""
    encode_attributes_once()
    for number in range(3000):
        encode_spans([span(id=f"id-{number}", route="/")])
    encode_spans([span(id="id-0")])
    assert encoded.count({"route": "/"}) == 1
    assert encoded.count({"id": "id-0"}) == 2


def test_another_version() -> None:
    """A version of the library without that function is left as it is."""
    other = ModuleType("other")
    encode_attributes_once(other)
    assert not hasattr(other, FUNCTION)

"""Makes the OTLP exporters encode an attribute that many spans have only once.

Most attributes of a span have the same value on thousands of others: the channel, the route, the type of an event.
The exporters build two protobuf objects for each of them on each span, which is a third of what a traced publish costs.
The library has no option for that, so its function is replaced, for all OTLP exporters of this process.
"""

from functools import lru_cache
from types import ModuleType
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.common._internal import trace_encoder

__all__ = ["FUNCTION", "encode_attributes_once"]

FUNCTION: Final = "_encode_attributes"
"""The name of the library's function."""

# Enough for the values that recur. Values that do not, such as ids, take their places only until they are the oldest.
_MOST: Final = 1024
# Of exactly these types, equal values are encoded equally: True is equal to 1, but is no int here.
_CACHED: Final = (str, int)


def encode_attributes_once(encoder: ModuleType = trace_encoder) -> None:
    """Replace the function that encodes the attributes of spans; do nothing if this version has none of that name."""
    original = getattr(encoder, FUNCTION, None)
    if original is None or hasattr(original, "cache"):
        return

    @lru_cache(_MOST)
    def cache(key: str, value: str | int) -> list[Any]:
        return list(original({key: value}))

    def encode(attributes: Any) -> list[Any]:  # noqa: ANN401  a mapping that has `copy`, or None
        encoded: list[Any] = []
        if attributes:
            # Iterating over a copy is faster: the library's own mappings take a lock for each step.
            for key, value in attributes.copy().items():
                encoded += cache(key, value) if type(value) in _CACHED else original({key: value})
        return encoded

    encode.cache = cache  # type: ignore[attr-defined]  # marks the replacement
    setattr(encoder, FUNCTION, encode)

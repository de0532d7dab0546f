"""The rules of free objects, checked on their JSON text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.messages.free_objects import MAX_NESTING, compact, fault_in, nested_too_deeply

TOO_DEEP = "must not be nested deeper than 100 levels"
TOO_LARGE = "must not have numbers beyond the range of a 64-bit float"

strings = st.text() | st.sampled_from(["\\", '"', '\\"', '[{"', "]}", "1e999", "\\\\", "e999", "9" * 400])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=12,
)


def text(value: Any) -> bytes:
    """Return a value as JSON without whitespace."""
    return json.dumps(value, separators=(",", ":")).encode()


@given(value=st.dictionaries(strings, values, max_size=4), indent=st.sampled_from([None, 1, 4]))
def test_compact(value: dict[str, Any], indent: int | None) -> None:
    """Whitespace between tokens is removed, and everything else is unchanged."""
    assert compact(json.dumps(value, indent=indent).encode()) == text(value)


@given(value=st.dictionaries(strings, values, max_size=4))
def test_valid(value: dict[str, Any]) -> None:
    """Any content is accepted; brackets and numbers within strings do not count."""
    assert fault_in(text(value)) is None


@given(value=st.dictionaries(strings, values, min_size=1, max_size=4), depth=st.integers(1, 130), large=st.booleans())
def test_faults(value: dict[str, Any], depth: int, large: bool) -> None:
    """Nesting and numbers are judged wherever they are, whatever stands beside them."""
    inner: Any = "NUMBER"
    for _ in range(depth):
        inner = [inner, value] if depth % 2 else {"a": inner}
    body = text({**value, "deep": inner}).replace(b'"NUMBER"', b"1e999" if large else b"1e99")
    expected = TOO_LARGE if large else None
    if nested_too_deeply({"deep": inner}):
        expected = TOO_DEEP
    assert fault_in(body) == expected


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting(opening: bytes) -> None:
    """An object may be nested MAX_NESTING levels deep, itself included."""
    closing = b"]" if opening == b"[" else b"}"
    for depth, expected in ((MAX_NESTING, None), (MAX_NESTING + 1, TOO_DEEP)):
        inside = opening * (depth - 1) + b"1" + closing * (depth - 1)
        assert fault_in(b'{"x":%b,"y":"\\\\"}' % inside) == expected
        assert fault_in(b'{"x":"%b"}' % inside.replace(b'"', b'\\"')) is None


@pytest.mark.parametrize(
    ("number", "valid"),
    [
        ("1.7976931348623157e308", True),
        ("-1.7976931348623157E+308", True),
        ("1.7976931348623159e308", False),
        ("-1e309", False),
        ("1e+0000309", False),
        ("1e-999", True),
        ("0.0e999", True),
        ("9" * 308, True),
        ("9" * 309, False),
        ("-" + "9" * 5000, False),
        ("9" * 309 + "e-1", True),
        ("9" * 250 + "e99", False),
        ("9" * 150 + "e200", False),
        ("0." + "9" * 5000, True),
        ("9" * 250 + ".5e58", True),
        ("1e99999999999999999999", False),
    ],
)
@pytest.mark.parametrize("place", ['{"a":N}', '{"a":[null,true,false,N,"x"]}', '{"a":{"1e999":[[],{},N]}}'])
def test_numbers(number: str, valid: bool, place: str) -> None:
    """A number must fit into a 64-bit float, in whatever way it is written; it may have any precision."""
    assert fault_in(place.replace("N", number).encode()) == (None if valid else TOO_LARGE)


@pytest.mark.parametrize("number", ["1e999", "9" * 400])
def test_numbers_in_strings(number: str) -> None:
    """A string may contain any number."""
    assert fault_in(text({number: [number, f'\\"{number}', number + "\\"]})) is None

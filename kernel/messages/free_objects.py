"""Free objects: `details` and `metadata`, objects of any content.

A free object is passed on as the bytes in which it came, without whitespace. Decoding it into Python objects would cost
too much: msgspec needs up to 20 µs for a number such as 1e308, and a publish could thus stop the event loop for
seconds. The rules of a free object are therefore checked on its JSON text, by functions that run in C and take linear
time.
"""

from itertools import accumulate
from math import inf
from typing import Final

import msgspec

__all__ = ["MAX_NESTING", "compact", "fault_in", "nested_too_deeply"]

MAX_NESTING: Final = 100
"""Maximum depth of nesting in `details` and `metadata`, far less than any JSON library supports, msgspec included."""

NESTED_TOO_DEEPLY: Final = f"must not be nested deeper than {MAX_NESTING} levels"

_BRACKETS: Final = b"[]{}"
_LEVELS: Final = bytes.maketrans(_BRACKETS, b"\x01\xff\x01\xff")  # as signed bytes: one level up or down
_NO_BRACKETS: Final = bytes(set(range(256)) - set(_BRACKETS))
_DIGITS_AS_ZERO: Final = bytes.maketrans(b"0123456789E", b"0000000000e")
_SEPARATORS_AS_SPACES: Final = bytes.maketrans(b"[]{},:", b"      ")
_MANY_DIGITS: Final = b"0" * 200


def compact(text: bytes) -> bytes:
    """Return valid JSON without the whitespace between its tokens."""
    return msgspec.json.format(text, indent=-1)


def fault_in(text: bytes) -> str | None:
    """Return what is wrong with a free object, or None.

    `text` is valid JSON without whitespace. A free object must be nested at most MAX_NESTING levels deep, and each of
    its numbers must fit into a 64-bit float: most receivers would read a larger one as infinity, or refuse the event.
    """
    brackets = text.translate(None, _NO_BRACKETS)
    large = _may_have_large_numbers(text)
    if len(brackets) <= 2 * MAX_NESTING and not large:
        return None
    outside = _outside_strings(text)
    levels = memoryview(outside.translate(_LEVELS, _NO_BRACKETS)).cast("b")
    if max(accumulate(levels)) > MAX_NESTING:
        return NESTED_TOO_DEEPLY
    if large and inf in map(abs, map(float, _numbers(outside))):
        return "must not have numbers beyond the range of a 64-bit float"
    return None


def nested_too_deeply(value: object) -> bool:
    """Return True if a Python object is nested deeper than MAX_NESTING; iterates by level instead of recursing."""
    level = [value]
    for _ in range(MAX_NESTING + 1):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return False
        level = [item for each in containers for item in (each.values() if isinstance(each, dict) else each)]
    return True


def _outside_strings(text: bytes) -> bytes:
    """Return valid JSON without its strings."""
    if b"\\" in text:
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    return b"".join(text.split(b'"')[::2])


def _may_have_large_numbers(text: bytes) -> bool:
    """Return False if no number of the text has an exponent of three digits or 200 digits in a row."""
    text = text.translate(_DIGITS_AS_ZERO)
    return b"e000" in text or b"e+000" in text or _MANY_DIGITS in text


def _numbers(outside: bytes) -> list[bytes]:
    """Return the numbers of valid JSON without strings."""
    for word in (b"null", b"true", b"false"):
        outside = outside.replace(word, b"")
    return outside.translate(_SEPARATORS_AS_SPACES).split()

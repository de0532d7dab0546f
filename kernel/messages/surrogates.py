"""Lone surrogates: JSON's grammar (RFC 8259, 8.2) allows escapes of half a character, but msgspec refuses them."""

import re

__all__ = ["replace_lone_surrogates"]

_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_HIGH = re.compile(rb"%s(?!%s)" % (_HIGH, _LOW))
_LONE_LOW = re.compile(rb"(?<!%s)%s" % (_HIGH, _LOW))
_REPLACEMENT = rb"\\ufffd"  # as a template of `re.sub`
_NUL = b"\0"


def replace_lone_surrogates(text: bytes) -> bytes:
    r"""Return JSON text in which every escape of a lone surrogate is replaced by that of U+FFFD.

    Pairs, escaped backslashes (`\\ud800`) and everything else are unchanged. The time is linear, and no Python code
    runs for each match.
    """
    if (rb"\ud" not in text and rb"\uD" not in text) or _NUL in text:  # a NUL is never valid in JSON
        return text
    # NUL stands for an escaped backslash meanwhile, so that every other backslash begins an escape.
    text = text.replace(rb"\\", _NUL)
    text = _LONE_HIGH.sub(_REPLACEMENT, text)
    text = _LONE_LOW.sub(_REPLACEMENT, text)  # the high surrogates that are left belong to pairs
    return text.replace(_NUL, rb"\\")

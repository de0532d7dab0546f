r"""Escapes of lone surrogates (`\ud800`) become that of U+FFFD; everything else stays."""

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.messages import replace_lone_surrogates

_TOKENS = [
    rb"\\",
    rb"\ud800",
    rb"\udc00",
    rb"\uDBFF",
    rb"\uDfFf",
    rb"\n",
    rb"\"",
    rb"\u0041",
    b"ud800",
    b"x",
    b"\xc3\xa9",
]


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        (rb'"\ud800"', rb'"\ufffd"'),
        (rb'"\uDFFF"', rb'"\ufffd"'),
        (rb'"\ud83d\ude00"', rb'"\ud83d\ude00"'),
        (rb'"\ud83d\ud83d\ude00\ude00"', rb'"\ufffd\ud83d\ude00\ufffd"'),
        (rb'"\ude00\ud83d"', rb'"\ufffd\ufffd"'),
        (rb'"\\ud800"', rb'"\\ud800"'),
        (rb'"\\\ud800"', rb'"\\\ufffd"'),
        (rb'"\\ud83d\ude00"', rb'"\\ud83d\ufffd"'),
        (rb'"\ud83d\\ude00"', rb'"\ufffd\\ude00"'),
        (rb'"\ud83dx\ude00"', rb'"\ufffdx\ufffd"'),
        (rb'"\ud83"', rb'"\ud83"'),
        (b'"\\ud800\0"', b'"\\ud800\0"'),
        (b"{}", b"{}"),
    ],
)
def test_examples(text: bytes, replaced: bytes) -> None:
    """Only an escape that stands for half a character is replaced."""
    assert replace_lone_surrogates(text) == replaced


@given(st.lists(st.sampled_from(_TOKENS)))
def test_the_same_as_python(tokens: list[bytes]) -> None:
    """The result decodes to what Python's decoder makes of the text, with U+FFFD for each lone surrogate."""
    text = b'"' + b"".join(tokens) + b'"'
    expected = re.sub("[\ud800-\udfff]", "\ufffd", json.loads(text))
    assert json.loads(replace_lone_surrogates(text)) == expected


@pytest.mark.parametrize(
    "unit", [rb"\\", rb"\ud800", rb"\ud83d\ude00", rb"\ud83d\ude00x", rb"x\udc00", rb"\\\ud800", rb"\ud", rb"\n"]
)
def test_the_time_is_linear(unit: bytes) -> None:
    """1 MB of anything takes milliseconds."""
    text = unit * (1_000_000 // len(unit)) + rb"\ud800"
    started = time.process_time()
    replace_lone_surrogates(text)
    assert time.process_time() - started < 1

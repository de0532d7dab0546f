"""Globs: what one shell glob matches, and what it may cost."""

import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.clients.globs import compile_glob, has_wildcards

# Small alphabets make it likely that globs and names meet, and that brackets, ranges and stars meet each other.
names = st.one_of(
    st.sampled_from(["alert_created", "camera.offline", "detection.new"]),
    st.text(st.sampled_from("abc-]![^&\\\n. é"), max_size=8),
    st.text(max_size=256),
)
globs = st.one_of(
    st.lists(
        st.sampled_from(["*", "?", "[a-c]", "[!a-c]", "[!e]", "[]a]", "[", "alert", "_", ".", "camera", "e", "s"]),
        max_size=6,
    ).map("".join),
    st.text(st.sampled_from("abc-*?[]!^&~|\\\n. é"), max_size=10),
    st.text(max_size=256),
)


@pytest.mark.parametrize(
    ("glob", "matched", "not_matched"),
    [
        ("", [""], ["a"]),
        ("event", ["event"], ["events", "even", ""]),
        ("alert.*", ["alert.created", "alert."], ["alert", "alert_created"]),
        ("*.status", ["a.status", ".status"], ["a.status_changed"]),
        ("a?c", ["abc", "a?c"], ["ac", "abbc"]),
        ("[a-c]x", ["ax", "bx", "cx"], ["dx", "-x", "x"]),
        ("[!a-c]x", ["dx", "-x"], ["ax", "x"]),
        ("[]a]", ["]", "a"], ["[", "b"]),
        ("[!]a]", ["b"], ["]", "a"]),
        ("[", ["["], ["a", ""]),
        ("[ab", ["[ab"], ["a"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[c-a]", [], ["a", "b", "c"]),
    ],
)
def test_one_glob(glob: str, matched: list[str], not_matched: list[str]) -> None:
    """A glob knows stars, question marks, classes and negated classes; an unfinished class stands for itself."""
    assert [name for name in matched + not_matched if compile_glob(glob).matches(name)] == matched


@settings(deadline=None)
@given(globs, names)
def test_matches_like_fnmatch(glob: str, name: str) -> None:
    """A glob means what it means to `fnmatch`, for any glob and any name."""
    assert compile_glob(glob).matches(name) is fnmatchcase(name, glob)


@pytest.mark.parametrize(
    "glob", ["*a" * 128, "?*" * 128, "[a-z]*" * 42, "[" * 256, "[a" * 128, "*[" + "a-z" * 80 + "]" * 3, "*" * 256]
)
def test_hostile_globs(glob: str) -> None:
    """No glob of 256 characters costs more than some milliseconds on a name of 256."""
    begin = time.process_time()
    for name in ("alert_created", "a" * 256 + "!", "ab" * 128):
        compile_glob(glob).matches(name)
    assert time.process_time() - begin < 0.25, "a backtracking matcher would take ages"


@pytest.mark.parametrize("glob", ["*", "a?", "[a]", "a[", "event*"])
def test_wildcards(glob: str) -> None:
    """A glob with a star, a question mark or an opening bracket must be run; any other is compared as it is."""
    assert has_wildcards(glob)


@pytest.mark.parametrize("glob", ["", "event", "camera.offline", "a]", "!a"])
def test_no_wildcards(glob: str) -> None:
    """A text without those characters matches itself alone."""
    assert not has_wildcards(glob)

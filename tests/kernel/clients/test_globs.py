"""Globs: what one shell glob matches, and what it may cost."""

import random
import time
import tracemalloc
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.clients import globs as globs_module
from kernel.clients.globs import GlobSet, has_wildcards

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


def matches(glob: str, *names: str) -> bool:
    """Return True if the glob matches any of the names."""
    return GlobSet([glob]).matches(names)


@pytest.mark.parametrize(
    ("glob", "matched", "not_matched"),
    [
        ("event", ["event"], ["events", "even", ""]),
        ("alert.*", ["alert.created", "alert."], ["alert", "alert_created"]),
        ("*.status", ["a.status", ".status"], ["a.status_changed"]),
        ("a?", ["ab", "a?"], ["a", "abc"]),
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
    assert [name for name in matched + not_matched if matches(glob, name)] == matched


@settings(deadline=None)
@given(globs, names)
def test_matches_like_fnmatch(glob: str, name: str) -> None:
    """A glob means what it means to `fnmatch`, for any glob and any name."""
    if glob:
        assert matches(glob, name) is fnmatchcase(name, glob)


@settings(deadline=None)
@given(st.lists(globs.filter(bool), max_size=6), st.lists(names, min_size=1, max_size=3), st.integers(1, 20))
def test_a_set_matches_if_one_glob_does(globs: list[str], names: list[str], block: int) -> None:
    """Globs that stand side by side do not disturb each other, in one block or in several."""
    expected = any(fnmatchcase(name, glob) for glob in globs for name in names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(globs_module, "BLOCK", block)
        patch.setattr(globs_module, "REMEMBERED", block)
        one = GlobSet(globs)
        assert one.matches(names) is expected
        assert one.matches(names) is expected, "remembered wrongly"


@pytest.mark.parametrize(
    "glob", ["*a" * 128, "?*" * 128, "[a-z]*" * 42, "[" * 256, "[a" * 128, "*[" + "a-z" * 80 + "]" * 3, "*" * 256]
)
def test_hostile_globs(glob: str) -> None:
    """No glob of 256 characters costs more than some milliseconds on a name of 256."""
    begin = time.process_time()
    for name in ("alert_created", "a" * 256 + "!", "ab" * 128):
        matches(glob, name)
    assert time.process_time() - begin < 0.25, "a backtracking matcher would take ages"


def hostile(kind: str) -> list[str]:
    """Return a hundred globs of 256 characters that are laborious to make or to match."""
    choice = random.Random(1)

    def character() -> str:
        return chr(choice.randrange(0x61, 0xD000))

    makers = {
        "stars": lambda number: "*a" * 126 + f"{number:04}",
        "questions": lambda number: "?*" * 126 + f"{number:04}",
        "literals": lambda number: "*" + "a" * 251 + f"{number:04}",
        "characters": lambda _: "".join(f"{character()}*" for _ in range(128)),
        "members": lambda _: "*[" + "".join(character() for _ in range(251)) + "]*!",
        "classes": lambda _: "".join(f"[{character()}]*" for _ in range(64)),
        "ranges": lambda _: "".join(f"[{character()}-{character()}]*" for _ in range(42)),
        "brackets": lambda number: "[" * 252 + f"{number:04}",
    }
    return [makers[kind](number) for number in range(100)]


HOSTILE = ["stars", "questions", "literals", "characters", "members", "classes", "ranges", "brackets"]
WIDE = "".join(map(chr, range(0x3000, 0x3000 + 0x7F * 256, 0x7F)))


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_sets(kind: str) -> None:
    """A hundred hostile globs are compared in steps of a few milliseconds, and again in a few altogether."""
    globs = GlobSet(hostile(kind))
    longest = 0.0
    for name in ("event.created", "a" * 256, WIDE):
        before = time.thread_time()
        for verdict in globs.steps([name]):
            now = time.thread_time()
            longest, before = max(longest, now - before), now
            assert not verdict
    assert longest < 0.03
    before = time.thread_time()
    assert not globs.matches(["a" * 256])
    assert time.thread_time() - before < 0.02


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_short_name_costs_little(kind: str) -> None:
    """A client that subscribes is compared with the name of an event at once; that takes a few milliseconds at most."""
    globs = hostile(kind)
    before = time.thread_time()
    GlobSet(globs).matches(["event", "event.created"])
    assert time.thread_time() - before < 0.1


@pytest.mark.parametrize("kind", ["stars", "characters", "members", "ranges"])
def test_memory_of_a_hostile_set(kind: str) -> None:
    """A set takes memory in proportion to its text, whatever characters are in it and in the names."""
    globs = hostile(kind)
    tracemalloc.start()
    try:
        one = GlobSet(globs)
        for start in range(0, 250, 50):
            one.matches(["a" * 100 + WIDE[start : start + 50]])
        assert tracemalloc.get_traced_memory()[0] < 3_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("glob", ["*", "a?", "[a]", "a[", "event*"])
def test_wildcards(glob: str) -> None:
    """A glob with a star, a question mark or an opening bracket must be run; any other is compared as it is."""
    assert has_wildcards(glob)


@pytest.mark.parametrize("glob", ["", "event", "camera.offline", "a]", "!a"])
def test_no_wildcards(glob: str) -> None:
    """A text without those characters matches itself alone."""
    assert not has_wildcards(glob)

"""Patterns: what a client subscribed to, and what that matches."""

import gc
import time
import tracemalloc
import weakref
from collections.abc import Iterable
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.clients.patterns import EVERYTHING, Patterns

FURTHER_NAMES = {
    "event": ["event.created"],
    "service_status": ["service.status_changed"],
    "camera_status": ["camera.status_changed", "camera.offline"],
    "scene_change": ["scene_change.detected", "scene.changed"],
    **{
        f"alert_{kind}": [f"alert.{kind}"]
        for kind in ("created", "updated", "acknowledged", "resolved", "dismissed", "deleted")
    },
    "worker_status": ["worker.status_changed", "worker.health_check_failed"],
    "detection.new": [],
    "detection.batch": [],
    "infrastructure_alert": ["infrastructure.alert"],
    "summary_update": ["summary.updated"],
}
WIRE_NAMES = [(wire_type, *further) for wire_type, further in FURTHER_NAMES.items()]

# Small alphabets make it likely that patterns and names meet, and that brackets, ranges and stars meet each other.
names = st.one_of(
    st.sampled_from(WIRE_NAMES),
    st.lists(st.text(st.sampled_from("abc-]![^&\\\n. é"), max_size=8), min_size=1, max_size=3).map(tuple),
    st.lists(st.text(max_size=256), min_size=1, max_size=3).map(tuple),
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
    ("glob", "matched"),
    [
        ("event", {"event"}),
        ("alert.*", {wire_type for wire_type in FURTHER_NAMES if wire_type.startswith("alert_")}),
        ("alert_?reated", {"alert_created"}),
        ("detection.[nb]*", {"detection.new", "detection.batch"}),
        ("detection.[!n]*", {"detection.batch"}),
        ("camera.offline", {"camera_status"}),
        ("WORKER.*", {"worker_status"}),
        ("*.status_changed", {"service_status", "camera_status", "worker_status"}),
        ("*", set(FURTHER_NAMES)),
        ("[", set()),
    ],
)
def test_one_pattern(glob: str, matched: set[str]) -> None:
    """A pattern in any letter case matches a message if it matches any of the message's names."""
    patterns = Patterns.of([glob])
    assert {names[0] for names in WIRE_NAMES if patterns.matches(names)} == matched


def test_several_patterns() -> None:
    """A client receives what matches at least one of its patterns."""
    patterns = Patterns.of(["event", "scene.*", "nothing*"])
    assert {names[0] for names in WIRE_NAMES if patterns.matches(names)} == {"event", "scene_change"}


def test_never_subscribed_and_nothing_left() -> None:
    """A client that never subscribed receives everything; one that removed its last pattern receives nothing."""
    assert all(EVERYTHING.matches(names) for names in WIRE_NAMES)
    assert not any(Patterns.of([]).matches(names) for names in WIRE_NAMES)


@settings(deadline=None)
@given(st.sets(globs, max_size=5), names)
def test_matches_like_fnmatch(globs: set[str], names: tuple[str, ...]) -> None:
    """Patterns are shell globs in lower case, as `fnmatch` understands them, and a remembered verdict stays right."""
    names = tuple(name.lower()[:256] for name in names)
    expected = any(fnmatchcase(name, glob.lower()) for glob in globs for name in names)
    patterns = Patterns.of(globs)
    assert patterns.matches(names) is expected
    assert patterns.matches(names) is expected, "remembered wrongly"


def test_a_literal_is_no_glob() -> None:
    """A pattern with wildcards does not match its own text."""
    assert not Patterns.of(["[ab]"]).matches(("[ab]",))


def test_overlong_names() -> None:
    """Wildcards see the first 256 characters of a name, so that a name of any length costs little."""
    patterns = Patterns.of(["worker.*", "x" * 256, "*a" * 128])
    assert patterns.matches(("worker." + "x" * 1000,))
    assert not patterns.matches(("x" * 257,))
    begin = time.process_time()
    assert patterns.matches(("a" * 1_000_000,))
    assert time.process_time() - begin < 0.25


def growth(names: Iterable[tuple[str, ...]]) -> int:
    """Return by how many bytes the memory grows while a client's patterns are compared with these names."""
    patterns = Patterns.of(["worker.1*"])
    patterns.matches(("warm up",))
    gc.collect()
    tracemalloc.start()
    try:
        for each in names:
            assert patterns.matches(each) is each[0].startswith("worker.1")
        del each
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_memory_of_names_is_bounded() -> None:
    """Event types are free text; comparing any number of them takes a bounded amount of memory."""
    assert growth((f"worker.{number}", f"further.{number}") for number in range(5_000)) < 100_000


def test_overlong_names_are_not_remembered() -> None:
    """A name of more than 256 characters is compared each time, so that long names do not fill the memory."""
    assert growth((f"worker.{number}" + "x" * 100_000,) for number in range(50)) < 100_000


def test_equal_sets_are_one_object() -> None:
    """Equal sets of patterns are one object, whatever their order and letter case."""
    one = Patterns.of(["Alert.*", "event"])
    assert one is Patterns.of(["event", "alert.*", "EVENT"])
    assert one is not Patterns.of(["event"])
    assert one.globs == {"alert.*", "event"}
    assert Patterns.of(None) is EVERYTHING
    assert EVERYTHING.globs is None
    assert Patterns.of([]).globs == frozenset()
    assert repr(one) == "Patterns.of(['alert.*', 'event'])"
    assert repr(EVERYTHING) == "Patterns.of(None)"


def test_forgotten_sets_are_freed() -> None:
    """Patterns that no client uses any more are freed."""
    gone = weakref.ref(Patterns.of(["used only here"]))
    gc.collect()
    assert gone() is None


def test_adding() -> None:
    """The first pattern ends "everything"; further ones add up."""
    first = EVERYTHING.with_added(["Event"])
    assert first is Patterns.of(["event"])
    assert first.with_added(["alert.*", "event"]) is Patterns.of(["event", "alert.*"])


def test_removing() -> None:
    """Removing by name returns what was there; removing the last pattern leaves a client that receives nothing."""
    both = Patterns.of(["event", "alert.*"])
    assert both.with_removed(["ALERT.*", "unknown", "alert.*"]) == (Patterns.of(["event"]), ["alert.*"])
    assert both.with_removed(["event", "alert.*"]) == (Patterns.of([]), ["event", "alert.*"])
    assert both.with_removed(["unknown"]) == (both, [])
    assert EVERYTHING.with_removed(["event"]) == (EVERYTHING, [])


def test_removing_all() -> None:
    """Removing without names removes all patterns, and the client receives everything again."""
    assert Patterns.of(["event", "alert.*"]).with_removed(None) == (EVERYTHING, ["alert.*", "event"])
    assert Patterns.of([]).with_removed(None) == (EVERYTHING, [])
    assert EVERYTHING.with_removed(None) == (EVERYTHING, [])

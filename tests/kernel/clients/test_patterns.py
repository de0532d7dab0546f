"""Patterns, what they match, and the index of audiences."""

import gc
import time
import weakref
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kernel.clients.patterns import EVERYTHING, Audience, Audiences, Patterns

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
def test_one_glob(glob: str, matched: set[str]) -> None:
    """Section 5, subscriptions: a shell glob in any letter case matches a message by any of its names."""
    patterns = Patterns.of([glob])
    assert {names[0] for names in WIRE_NAMES if patterns.matches(names)} == matched


def test_several_globs() -> None:
    """Section 5, subscriptions: a client receives what matches at least one of its patterns."""
    patterns = Patterns.of(["event", "scene.*", "nothing*"])
    assert {names[0] for names in WIRE_NAMES if patterns.matches(names)} == {"event", "scene_change"}


def test_never_subscribed_and_nothing_left() -> None:
    """Section 5, subscriptions: who never subscribed receives everything, who removed the last pattern nothing."""
    assert all(EVERYTHING.matches(names) for names in WIRE_NAMES)
    assert not any(Patterns.of([]).matches(names) for names in WIRE_NAMES)


@settings(deadline=None)
@given(st.sets(globs, max_size=5), names)
def test_matches_like_fnmatch(globs: set[str], names: tuple[str, ...]) -> None:
    """Section 5, subscriptions: patterns are shell globs, as `fnmatch` understands them, on lower case."""
    names = tuple(name.lower()[:256] for name in names)
    expected = any(fnmatchcase(name, glob.lower()) for glob in globs for name in names)
    patterns = Patterns.of(globs)
    assert patterns.matches(names) is expected
    assert patterns.matches(names) is expected, "remembered wrongly"


def test_a_literal_is_no_glob() -> None:
    """Section 5, subscriptions: a pattern with wildcards does not match its own spelling."""
    assert not Patterns.of(["[ab]"]).matches(("[ab]",))


@pytest.mark.parametrize(
    "glob", ["*a" * 128, "?*" * 128, "[a-z]*" * 42, "[" * 256, "[a" * 128, "*[" + "a-z" * 80 + "]" * 3, "*" * 256]
)
def test_hostile_patterns(glob: str) -> None:
    """Section 5, subscriptions: no pattern, however hostile, costs more than some milliseconds on any name."""
    patterns = Patterns.of([glob])
    begin = time.process_time()
    for name in ("alert_created", "a" * 256 + "!", "a" * 1_000_000, "ab" * 128):
        patterns.matches((name,))
    assert time.process_time() - begin < 0.25, "a backtracking matcher would take ages"


def test_overlong_names() -> None:
    """Section 5, subscriptions: of an overlong name the beginning is compared with wildcards, and it is not kept."""
    patterns = Patterns.of(["worker.*", "x" * 256])
    assert patterns.matches(("worker." + "x" * 1000,))
    assert not patterns.matches(("x" * 257,))
    assert not patterns._verdicts


def test_memory_of_names_is_bounded() -> None:
    """Section 5, subscriptions: free-text event types do not fill the memory, and answers stay right."""
    patterns = Patterns.of(["worker.1*"])
    for number in range(1000):
        assert patterns.matches((f"worker.{number}",)) is str(number).startswith("1")
        assert len(patterns._verdicts) <= 64


def test_equal_sets_are_one_object() -> None:
    """Section 5, subscriptions: equal sets of patterns are one object, whatever their order and letter case."""
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
    """Section 5, subscriptions: patterns that nobody uses any more are not kept."""
    gone = weakref.ref(Patterns.of(["used only here"]))
    gc.collect()
    assert gone() is None


def test_adding() -> None:
    """Section 5, subscriptions: the first subscribe ends "everything", further ones add up."""
    first = EVERYTHING.with_added(["Event"])
    assert first is Patterns.of(["event"])
    assert first.with_added(["alert.*", "event"]) is Patterns.of(["event", "alert.*"])


def test_removing() -> None:
    """Section 5, subscriptions: removing by name tells what was there; the last one removed leaves nothing."""
    both = Patterns.of(["event", "alert.*"])
    assert both.with_removed(["ALERT.*", "unknown", "alert.*"]) == (Patterns.of(["event"]), ["alert.*"])
    assert both.with_removed(["event", "alert.*"]) == (Patterns.of([]), ["event", "alert.*"])
    assert both.with_removed(["unknown"]) == (both, [])
    assert EVERYTHING.with_removed(["event"]) == (EVERYTHING, [])


def test_removing_all() -> None:
    """Section 4, unsubscribe without a list: all are removed, back to receiving everything."""
    assert Patterns.of(["event", "alert.*"]).with_removed(None) == (EVERYTHING, ["alert.*", "event"])
    assert Patterns.of([]).with_removed(None) == (EVERYTHING, [])
    assert EVERYTHING.with_removed(None) == (EVERYTHING, [])


def test_audience_order_and_snapshot() -> None:
    """Section 5, subscriptions: clients with equal patterns and encoding share an audience, in order of joining."""
    audiences: Audiences[str, str] = Audiences()
    audience = audiences.join("b", EVERYTHING, "text")
    assert audiences.join("a", Patterns.of(None), "text") is audience
    assert (audience.patterns, audience.encoding, list(audience.clients)) == (EVERYTHING, "text", ["b", "a"])
    before = audience.snapshot()
    assert before is audience.snapshot()
    audiences.leave("b", audience)
    assert (before, audience.snapshot(), len(audience)) == (("b", "a"), ("a",), 1)


def test_walk_while_clients_come_and_go() -> None:
    """Section 9, slow clients: a walk over the audiences stands while clients join, leave and change their patterns."""
    audiences: Audiences[str, str] = Audiences()
    first, second, third = (audiences.join(encoding, EVERYTHING, encoding) for encoding in ("one", "two", "three"))
    walk = iter(audiences)
    audiences.join("four", EVERYTHING, "four")
    assert next(walk) is first
    audiences.leave("two", second)
    audiences.leave("one", first)
    assert list(walk) == [third]


class AudiencesModel(RuleBasedStateMachine):
    """Audiences against a plain dict client -> (patterns, encoding)."""

    clients = st.integers(0, 5)
    patterns = st.sampled_from([None, (), ("a",), ("a", "b")])
    encodings = st.sampled_from(["text", "zlib"])

    def __init__(self) -> None:
        super().__init__()
        self.audiences: Audiences[int, str] = Audiences()
        self.model: dict[int, tuple[Patterns, str]] = {}
        self.joined: dict[int, Audience[int, str]] = {}

    @rule(client=clients, patterns=patterns, encoding=encodings)
    def change(self, client: int, patterns: tuple[str, ...] | None, encoding: str) -> None:
        """Join, or leave and join elsewhere."""
        if client in self.joined:
            self.audiences.leave(client, self.joined[client])
        self.model[client] = Patterns.of(patterns), encoding
        self.joined[client] = self.audiences.join(client, *self.model[client])

    @rule(client=clients)
    def join_again(self, client: int) -> None:
        """Join where it is already."""
        if client in self.model:
            assert self.audiences.join(client, *self.model[client]) is self.joined[client]

    @rule(client=clients)
    def leave(self, client: int) -> None:
        """Leave, maybe for the second time."""
        self.model.pop(client, None)
        if client in self.joined:
            self.audiences.leave(client, self.joined[client])

    @invariant()
    def index_is_true(self) -> None:
        """Every client is in exactly its own audience, and no audience is empty or double."""
        assert len(self.audiences) == len(self.model)
        found = {(a.patterns, a.encoding): set(a.snapshot()) for a in self.audiences}
        expected: dict[tuple[Patterns, str], set[int]] = {}
        for client, key in self.model.items():
            expected.setdefault(key, set()).add(client)
        assert found == expected
        assert len(list(self.audiences)) == len(found)
        assert all(set(a.clients) == set(a.snapshot()) for a in self.audiences)


TestAudiences = AudiencesModel.TestCase

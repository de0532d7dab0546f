"""Audiences: the index of clients by patterns and encoding."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kernel.clients.audiences import Audience, Audiences
from kernel.clients.patterns import EVERYTHING, Patterns


def test_audience_order_and_snapshot() -> None:
    """Clients with equal patterns and equal encoding share an audience, in order of joining."""
    audiences: Audiences[str, str] = Audiences()
    audience = audiences.join("b", EVERYTHING, "text")
    assert audiences.join("a", Patterns.of(None), "text") is audience
    assert (audience.patterns, audience.encoding, list(audience.clients)) == (EVERYTHING, "text", ["b", "a"])
    before = audience.snapshot()
    assert before is audience.snapshot()
    audiences.leave("b", audience)
    assert (before, audience.snapshot(), len(audience)) == (("b", "a"), ("a",), 1)


def test_iterating_while_clients_come_and_go() -> None:
    """An iteration is over the audiences that existed when it started, except those that have become empty."""
    audiences: Audiences[str, str] = Audiences()
    first, second, third = (audiences.join(encoding, EVERYTHING, encoding) for encoding in ("one", "two", "three"))
    iteration = iter(audiences)
    audiences.join("four", EVERYTHING, "four")
    assert next(iteration) is first
    audiences.leave("two", second)
    audiences.leave("one", first)
    assert list(iteration) == [third]


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
        """Join the audience it is in already."""
        if client in self.model:
            assert self.audiences.join(client, *self.model[client]) is self.joined[client]

    @rule(client=clients)
    def leave(self, client: int) -> None:
        """Leave, perhaps for the second time."""
        self.model.pop(client, None)
        if client in self.joined:
            self.audiences.leave(client, self.joined[client])

    @invariant()
    def index_is_true(self) -> None:
        """Every client is in its own audience and no other, and no audience is empty or exists twice."""
        assert len(self.audiences) == len(self.model)
        found = {(a.patterns, a.encoding): set(a.snapshot()) for a in self.audiences}
        expected: dict[tuple[Patterns, str], set[int]] = {}
        for client, key in self.model.items():
            expected.setdefault(key, set()).add(client)
        assert found == expected
        assert len(list(self.audiences)) == len(found)
        assert all(set(a.clients) == set(a.snapshot()) for a in self.audiences)


TestAudiences = AudiencesModel.TestCase

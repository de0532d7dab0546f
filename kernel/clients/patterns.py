"""Who wants which events: a client's patterns, and the clients that want the same in the same form.

Here: shell globs and what they match, remembered per message's names; the index patterns -> audience.
Not here: what a message is called (names.py), how patterns arrive and how many a client may have (session.py),
what is written to whom (fanout.py).
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import ClassVar, Final, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

__all__ = ["EVERYTHING", "Audience", "Audiences", "Patterns"]

# A worker's event type is free text and so are patterns: these bounds keep both from costing memory or time.
_NAME_LENGTH = 256
_VERDICTS = 64
_MACHINES = 512

# As in fnmatch: a class runs to its first `]` that is not its first member, and a `[` without one stands for itself.
_TOKEN = re.compile(r"\[(!?+)(\]?+[^\]]*+)\]|(.)", re.DOTALL)
_MEMBER = re.compile(r"(.)-(.)|(.)", re.DOTALL)

ClientT = TypeVar("ClientT")
EncodingT = TypeVar("EncodingT")


class _Machine(NamedTuple):
    """One glob as a bit-parallel automaton (Baeza-Yates and Gonnet, "A New Approach to Text Searching", 1992).

    State n means "the first n tokens are read" and is bit n of an int. A star is no token but a loop on the state
    before it. Each token takes any character or none (`default`), but for its exceptions (`flips`, `ranges`).
    A regular expression would match as well, but takes up to 2 ms to compile, and a client may send 100 at once.
    """

    final: int
    default: int
    loops: int
    flips: dict[str, int]
    ranges: list[tuple[int, str, str]]

    def matches(self, name: str) -> bool:
        states = 1
        for character in name:
            flips = self.flips.get(character, 0)
            for token, low, high in self.ranges:
                if low <= character <= high:
                    flips |= token
            states = (states << 1) & (self.default ^ flips) | (states & self.loops)
            if not states:
                return False
        return bool(states & self.final)


@lru_cache(_MACHINES)
def _machine(glob: str) -> _Machine:
    token, default, loops = 1, 0, 0
    flips: dict[str, int] = {}
    ranges: list[tuple[int, str, str]] = []
    for negated, members, character in _TOKEN.findall(glob):
        if character == "*":
            loops |= token
            continue
        token <<= 1
        if character == "?" or negated:
            default |= token
        if character != "?":
            for low, high, single in _MEMBER.findall(members or character):
                if single:
                    flips[single] = flips.get(single, 0) | token
                else:
                    ranges.append((token, low, high))
    return _Machine(token, default, loops, flips, ranges)


class Patterns:
    """The patterns of a client: immutable, and one object for equal sets, so that `is`, `==` and `hash` are cheap.

    `globs` are shell globs (`*`, `?`, `[abc]`, `[!abc]`, as in `fnmatch`) in lower case; None means "never subscribed"
    and receives everything, the empty set receives nothing. Made by `Patterns.of` alone.
    """

    __slots__ = ("__weakref__", "_literals", "_verdicts", "_wild", "globs")

    _interned: ClassVar[WeakValueDictionary[frozenset[str] | None, "Patterns"]] = WeakValueDictionary()

    def __init__(self, globs: frozenset[str] | None) -> None:
        self.globs: Final = globs
        self._wild = [glob for glob in globs or () if not {"*", "?", "["}.isdisjoint(glob)]
        self._literals = frozenset(globs or ()).difference(self._wild)
        self._verdicts: dict[tuple[str, ...], bool] = {}

    def __repr__(self) -> str:
        return f"Patterns.of({None if self.globs is None else sorted(self.globs)})"

    @classmethod
    def of(cls, globs: Iterable[str] | None) -> "Patterns":
        """Return the one object for these globs, lowered here; None for "receives everything"."""
        key = None if globs is None else frozenset(glob.lower() for glob in globs)
        found = cls._interned.get(key)
        if found is None:
            found = cls._interned[key] = cls(key)
        return found

    def with_added(self, globs: Iterable[str]) -> "Patterns":
        """Return these patterns and `globs`; the first ones end "receives everything"."""
        return Patterns.of([*(self.globs or ()), *globs])

    def with_removed(self, globs: Iterable[str] | None) -> tuple["Patterns", list[str]]:
        """Return what is left without `globs`, and which of them were there (lower case, each once, in order).

        None removes all (listed in alphabetical order) and goes back to receiving everything; removing the last one
        by name leaves the empty set. One who never subscribed has nothing to remove and stays as it is.
        """
        present = self.globs or frozenset()
        if globs is None:
            return EVERYTHING, sorted(present)
        removed = [glob for glob in dict.fromkeys(glob.lower() for glob in globs) if glob in present]
        return (Patterns.of(present.difference(removed)) if removed else self), removed

    def matches(self, names: tuple[str, ...]) -> bool:
        """Tell whether any pattern matches any of a message's names (lower case).

        The answer is remembered for the last few sets of names. Of a longer name the first 256 characters are
        compared with wildcards, so that no name costs more than a long pattern does.
        """
        if self.globs is None:
            return True
        verdict = self._verdicts.get(names)
        if verdict is None:
            verdict = self._match(names)
            if sum(map(len, names)) <= _NAME_LENGTH:
                if len(self._verdicts) >= _VERDICTS:
                    self._verdicts.clear()
                self._verdicts[names] = verdict
        return verdict

    def _match(self, names: tuple[str, ...]) -> bool:
        return not self._literals.isdisjoint(names) or any(
            _machine(glob).matches(name[:_NAME_LENGTH]) for glob in self._wild for name in names
        )


EVERYTHING: Final = Patterns.of(None)


class Audience(Generic[ClientT, EncodingT]):
    """The clients with the same patterns and the same encoding, both hashable: the unit of fan-out.

    Joined and left through `Audiences` alone. `clients` keeps the order of joining.
    """

    __slots__ = ("_snapshot", "clients", "encoding", "patterns")

    def __init__(self, patterns: Patterns, encoding: EncodingT) -> None:
        self.patterns: Final = patterns
        self.encoding: Final = encoding
        self.clients: Final[dict[ClientT, None]] = {}
        self._snapshot: tuple[ClientT, ...] | None = ()

    def __len__(self) -> int:
        return len(self.clients)

    def snapshot(self) -> tuple[ClientT, ...]:
        """Return the clients of this moment, in order of joining; copied only after someone joined or left."""
        if self._snapshot is None:
            self._snapshot = tuple(self.clients)
        return self._snapshot

    def _add(self, client: ClientT) -> None:
        self.clients[client] = None
        self._snapshot = None

    def _remove(self, client: ClientT) -> None:
        del self.clients[client]
        self._snapshot = None


class Audiences(Generic[ClientT, EncodingT]):
    """All audiences with at least one client; `len()` is the number of clients. Joining and leaving are O(1)."""

    def __init__(self) -> None:
        self._audiences: dict[tuple[Patterns, EncodingT], Audience[ClientT, EncodingT]] = {}
        self._clients = 0

    def __len__(self) -> int:
        return self._clients

    def __iter__(self) -> Iterator[Audience[ClientT, EncodingT]]:
        """Walk the audiences of this moment; clients may come and go meanwhile, one that emptied is left out."""
        return (audience for audience in tuple(self._audiences.values()) if audience.clients)

    def join(self, client: ClientT, patterns: Patterns, encoding: EncodingT) -> Audience[ClientT, EncodingT]:
        """Put the client into the audience it belongs to and return that, to be given back to `leave`.

        A client that changes its patterns leaves first and joins again.
        """
        audience = self._audiences.get((patterns, encoding))
        if audience is None:
            audience = self._audiences[patterns, encoding] = Audience(patterns, encoding)
        if client not in audience.clients:
            audience._add(client)
            self._clients += 1
        return audience

    def leave(self, client: ClientT, audience: Audience[ClientT, EncodingT]) -> None:
        """Take the client out of its audience; one that has left already is no error."""
        if client in audience.clients:
            audience._remove(client)
            self._clients -= 1
            if not audience.clients:
                del self._audiences[audience.patterns, audience.encoding]

"""Patterns: what a client subscribed to, as an immutable set of globs that is shared by equal clients."""

from collections.abc import Iterable, Iterator
from typing import ClassVar, Final
from weakref import WeakValueDictionary

from kernel.clients.globs import BLOCK, GlobSet, has_wildcards

__all__ = ["EVERYTHING", "Patterns"]

# A worker's event type is free text: these bounds keep it from costing memory or time.
_NAME_LENGTH = 256
_VERDICTS = 64
# How many characters of globs are compared in a few milliseconds.
_QUICK = 4 * BLOCK


class Patterns:
    """The patterns of a client, immutable; made by `Patterns.of`, which returns one object for equal sets.

    So `is`, `==` and `hash` are cheap, and clients share the remembered verdicts. `globs` are shell globs (`*`, `?`,
    `[abc]`, `[!abc]`, as in `fnmatch`) in lower case. None means that the client never subscribed and receives
    everything; with the empty set it receives nothing.

    `quick` is False if a comparison may take so long that it must be done in `steps`.
    """

    __slots__ = ("__weakref__", "_literals", "_set", "_verdicts", "_wild", "globs", "quick")

    _interned: ClassVar[WeakValueDictionary[frozenset[str] | None, "Patterns"]] = WeakValueDictionary()

    def __init__(self, globs: frozenset[str] | None) -> None:
        self.globs: Final = globs
        self._wild = [glob for glob in globs or () if has_wildcards(glob)]
        self.quick: Final = sum(map(len, self._wild)) <= _QUICK
        self._literals = frozenset(globs or ()).difference(self._wild)
        self._set: GlobSet | None = None
        self._verdicts: dict[tuple[str, ...], bool] = {}

    def __repr__(self) -> str:
        return f"Patterns.of({None if self.globs is None else sorted(self.globs)})"

    @classmethod
    def of(cls, globs: Iterable[str] | None) -> "Patterns":
        """Return the object for these globs, in any letter case; None for "receives everything"."""
        key = None if globs is None else frozenset(glob.lower() for glob in globs)
        found = cls._interned.get(key)
        if found is None:
            found = cls._interned[key] = cls(key)
        return found

    def with_added(self, globs: Iterable[str]) -> "Patterns":
        """Return these patterns and `globs`; the first glob that is added ends "receives everything"."""
        return Patterns.of([*(self.globs or ()), *globs])

    def with_removed(self, globs: Iterable[str] | None) -> tuple["Patterns", list[str]]:
        """Return the patterns without `globs`, and the globs that were removed (lower case, each once, in order).

        None removes all globs (returned in alphabetical order) and goes back to receiving everything. Removing the last
        glob by name leaves the empty set. `EVERYTHING` has nothing to remove and stays as it is.
        """
        present = self.globs or frozenset()
        if globs is None:
            return EVERYTHING, sorted(present)
        removed = [glob for glob in dict.fromkeys(glob.lower() for glob in globs) if glob in present]
        return (Patterns.of(present.difference(removed)) if removed else self), removed

    def matches(self, names: tuple[str, ...]) -> bool:
        """Return True if any glob matches any of a message's names (lower case).

        The verdicts on a few dozen sets of names are remembered. A glob with wildcards sees the first 256 characters of
        a name, so that no name costs more than the longest pattern does.
        """
        verdict = self.known(names)
        if verdict is None:
            for verdict in self.steps(names):  # noqa: B007  the last one counts
                pass
        return bool(verdict)

    def known(self, names: tuple[str, ...]) -> bool | None:
        """Return the verdict on a message's names if it is remembered."""
        return True if self.globs is None else self._verdicts.get(names)

    def all_known(self, names: Iterable[tuple[str, ...] | None]) -> list[bool | None]:
        """Return the remembered verdict for each set of names, or None. A marker has no names and passes."""
        verdicts = self._verdicts
        return [True if self.globs is None or each is None else verdicts.get(each) for each in names]

    def steps(self, names: tuple[str, ...]) -> Iterator[bool]:
        """Do the work of `matches` in steps of about a millisecond; the last value is the verdict."""
        verdict = not self._literals.isdisjoint(names)
        if not verdict and self._wild:
            if self._set is None:
                self._set = GlobSet(self._wild)
            for verdict in self._set.steps([name[:_NAME_LENGTH] for name in names]):
                if verdict:
                    break
                yield False
        if sum(map(len, names)) <= _NAME_LENGTH:
            if len(self._verdicts) >= _VERDICTS:
                self._verdicts.clear()
            self._verdicts[names] = verdict
        yield verdict


EVERYTHING: Final = Patterns.of(None)

"""Globs: one shell glob as a bit-parallel automaton.

Theory of operation. A glob is a row of tokens: a character, `?` or a class such as `[a-z]`. The automaton is in several
states at once; state n means "the first n tokens are read" and is bit n of an integer. Reading a character shifts all
states by one token and keeps those whose token takes that character. A star is no token: it lets the state before it
stay where it is, whatever the character. The name matches if the last state is reached at its end. (Baeza-Yates and
Gonnet, "A New Approach to Text Searching", 1992.)

A client may send 100 patterns at once, and each may be hostile. This automaton is linear in the length of the name. A
regular expression would match as well, but takes up to 2 ms to compile.
"""

import re
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Glob", "compile_glob", "has_wildcards"]

_CACHED = 512

# As in fnmatch: a class runs to its first `]` that is not its first member, and a `[` without one stands for itself.
_TOKEN = re.compile(r"\[(!?+)(\]?+[^\]]*+)\]|(.)", re.DOTALL)
_MEMBER = re.compile(r"(.)-(.)|(.)", re.DOTALL)
_WILDCARDS = frozenset("*?[")


class Glob(NamedTuple):
    """One compiled glob; every field but `flips` and `ranges` is a set of states or tokens, one bit each.

    Each token takes any character (its bit is set in `default`) or none, except for the characters in `flips` and the
    ranges in `ranges`, for which it is the other way round. `loops` are the states before a star, `final` is the last.
    """

    final: int
    default: int
    loops: int
    flips: dict[str, int]
    ranges: list[tuple[int, str, str]]

    def matches(self, name: str) -> bool:
        """Return True if the glob matches all of `name`."""
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


@lru_cache(_CACHED)
def compile_glob(glob: str) -> Glob:
    """Compile a glob; the most recently used ones are kept."""
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
    return Glob(token, default, loops, flips, ranges)


def has_wildcards(glob: str) -> bool:
    """Return True if the glob may match another name than its own text."""
    return not _WILDCARDS.isdisjoint(glob)

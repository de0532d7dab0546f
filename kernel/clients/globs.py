"""Globs: shell globs as bit-parallel automata, several of them side by side in one integer.

Theory of operation. A glob is a row of tokens: a character, `?` or a class such as `[a-z]`. The automaton is in several
states at once; state n means "the first n tokens are read" and is bit n of an integer. Reading a character shifts all
states by one token and keeps those whose token takes that character. A star is no token: it lets the state before it
stay where it is, whatever the character. The name matches if the last state is reached at its end. (Baeza-Yates and
Gonnet, "A New Approach to Text Searching", 1992.) The globs of a block stand one after the other in the same integer,
so a character is read for all of them in one step.

Cost. A client may send 100 globs of 256 characters, and each may be hostile. A regular expression would take up to 2 ms
to compile, and much longer to match if it backtracks. Here a block holds 1,024 characters of globs or a little more; it
is made in 1 ms, and reads a name of 256 characters in 0.05 ms. Which tokens take a character is computed when a name
has that character, so a glob with thousands of different characters takes little more memory than its own text. A block
is made when a name is long enough for its shortest glob. `GlobSet.steps` lets the caller pause after each block.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

__all__ = ["GlobSet", "has_wildcards"]

# How many characters of globs a block has, but for the last glob.
BLOCK = 1024
# How many small blocks are shared by sets that have the same globs.
_SHARED_BLOCKS = 512
_SHARED_CHARACTERS = 256
# For how many characters a block remembers which tokens take them.
REMEMBERED = 64

# As in fnmatch: a class runs to its first `]` that is not its first member, and a `[` without one stands for itself.
_CLASS = re.compile(r"\[(!?+)(\]?+[^\]]*+)\]", re.DOTALL)
_MEMBER = re.compile(r"(.)-(.)|(.)", re.DOTALL)
_WILDCARDS = frozenset("*?[")
# An edge is the number of a character, shifted by this, and a state; a block has far fewer states.
_SHIFT = 16
_STATE = (1 << _SHIFT) - 1


class GlobSet:
    """Globs of which any may match. `globs` are in lower case and have wildcards."""

    __slots__ = ("_blocks", "_prefixes")

    def __init__(self, globs: Iterable[str]) -> None:
        prefixes: list[str] = []
        others: list[tuple[int, str]] = []
        for glob in globs:
            # the common case, `alert.*`, needs no automaton
            if has_wildcards(glob[:-1]):
                others.append((_tokens(glob), glob))
            elif glob[-1] == "*":
                prefixes.append(glob[:-1])
            else:
                others.append((len(glob), glob))
        self._prefixes = tuple(prefixes)
        # Blocks, each with the length of the shortest name that it can match, and the globs until it is made.
        self._blocks: list[tuple[int, tuple[str, ...] | _Block]] = []
        block: list[str] = []
        size = least = 0
        for tokens, glob in sorted(others):
            least = least if block else tokens
            block.append(glob)
            size += len(glob)
            if size >= BLOCK:
                self._blocks.append((least, tuple(block)))
                block, size = [], 0
        if block:
            self._blocks.append((least, tuple(block)))

    def steps(self, names: Sequence[str]) -> Iterator[bool]:
        """Compare the names with one block after the other; yield True if it matches, after which the caller stops.

        A step takes about a millisecond at most for names of 256 characters.
        """
        if self._prefixes:
            yield any(name.startswith(self._prefixes) for name in names)
        for number, (least, block) in enumerate(self._blocks):
            long = [name for name in names if len(name) >= least]
            if not long:
                return
            if not isinstance(block, _Block):
                block = _shared(block) if sum(map(len, block)) <= _SHARED_CHARACTERS else _Block(block)
                self._blocks[number] = (least, block)
                yield False
            yield any(map(block.matches, long))

    def matches(self, names: Sequence[str]) -> bool:
        """Return True if any glob matches all of any name."""
        return any(self.steps(names))


class _Block:
    """The automaton of several globs. Sets of states are integers with one bit for each state.

    A glob has a state for its start, which takes no character, and one for each token. `_text` has one character for
    each state: a literal token's own, or `*` or `?`, which are never literal. `_default` are the tokens that take any
    character but those of their class, `_loops` the states before a star, `_final` the last ones. `_takes` are the
    states that take a character, for those that names had recently.

    `_members` has the single members of all classes; those of the class with state `_classes[n]` begin at `_begins[n]`.
    `_edges` are the characters at which a range of a class begins or has ended, each with the state of the class, in
    ascending order.
    """

    __slots__ = (
        "_begins",
        "_classes",
        "_default",
        "_edges",
        "_final",
        "_loops",
        "_members",
        "_start",
        "_takes",
        "_text",
    )

    def __init__(self, globs: Iterable[str]) -> None:
        texts: list[str] = []
        count = start = final = default = loops = 0
        members: list[str] = []
        begins: list[int] = []
        states: list[int] = []
        edges: list[int] = []
        size = 0
        for glob in globs:
            start |= 1 << count
            texts.append("*")
            count += 1
            text, *classes = _pieces(glob)
            while True:
                literals = text.split("*")
                for literal in literals[:-1]:
                    count += len(literal)
                    loops |= 1 << (count - 1)
                count += len(literals[-1])
                texts += literals
                if not classes:
                    break
                negated, named, text = classes[:3]
                del classes[:3]
                if negated:
                    default |= 1 << count
                singles, ranges = _members(named)
                for low, high in ranges:
                    edges += low << _SHIFT | count, (high + 1) << _SHIFT | count
                members.append(singles)
                begins.append(size)
                states.append(count)
                size += len(singles)
                texts.append("*")
                count += 1
            final |= 1 << (count - 1)
        edges.sort()
        self._text = "".join(texts)
        self._default = default | _places(self._text, "?")
        self._start, self._final, self._loops = start, final, loops
        self._members, self._begins, self._classes, self._edges = "".join(members), begins, states, edges
        self._takes: dict[str, int] = {}

    def matches(self, name: str) -> bool:
        """Return True if a glob matches all of `name`."""
        takes, loops, states = self._takes, self._loops, self._start
        for character in name:
            if character not in takes:
                self._learn(name)
                takes = self._takes
            states = (states << 1) & takes[character] | states & loops
            if not states:
                return False
        return bool(states & self._final)

    def _learn(self, name: str) -> None:
        """Find the states that take the characters of a name."""
        if len(self._takes) > REMEMBERED:
            self._takes.clear()
        ranges = at = 0
        edges, members = self._edges, self._members
        for character in sorted(set(name).difference(self._takes)):
            bound = (ord(character) + 1) << _SHIFT
            while at < len(edges) and edges[at] < bound:
                ranges ^= 1 << (edges[at] & _STATE)
                at += 1
            classes = ranges
            place = members.find(character)
            while place >= 0:
                classes |= 1 << self._classes[bisect_right(self._begins, place) - 1]
                place = members.find(character, place + 1)
            literals = 0 if character in "*?" else _places(self._text, character)
            self._takes[character] = self._default ^ classes | literals


@lru_cache(_SHARED_BLOCKS)
def _shared(globs: tuple[str, ...]) -> _Block:
    """Return the automaton of a few globs; sets with the same globs share it."""
    return _Block(globs)


def _pieces(glob: str) -> list[str]:
    """Split a glob at its classes: text before a class, its `!` if any, its members, text after it, and so on."""
    end = glob.rfind("]") + 1  # no class begins after that, and searching for one at each `[` takes long
    pieces = _CLASS.split(glob[:end])
    pieces[-1] += glob[end:]
    return pieces


def _tokens(glob: str) -> int:
    """Return how many tokens a glob has, which is the length of the shortest name that it can match."""
    if "[" not in glob:
        return len(glob) - glob.count("*")
    pieces = _pieces(glob)
    return sum(len(text) - text.count("*") for text in pieces[::3]) + len(pieces) // 3


def _members(named: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the single members of a class, and its ranges as numbers of characters: in order, apart, ends included."""
    if "-" not in named:
        return named, []
    parsed = _MEMBER.findall(named)
    ranges: list[tuple[int, int]] = []
    # as in fnmatch, a range whose ends are in the wrong order has no characters
    for first, last in sorted([(ord(low), ord(high)) for low, high, _ in parsed if low and low <= high]):
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], last))
        else:
            ranges.append((first, last))
    return "".join([single for _, _, single in parsed]), ranges


def _places(text: str, character: str) -> int:
    """Return where a text has a character, as bits."""
    places = 0
    place = text.find(character)
    while place >= 0:
        places |= 1 << place
        place = text.find(character, place + 1)
    return places


def has_wildcards(glob: str) -> bool:
    """Return True if the glob may match another name than its own text."""
    return not _WILDCARDS.isdisjoint(glob)

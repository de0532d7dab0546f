"""Selection: what a client or an audience gets of some frames, prepared in steps.

Two parts of the work may take long: comparing hostile patterns with long names, and compressing large messages. Each is
done in steps, so that the event loop can run in between, however large the frames are and whatever the patterns are.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import compress

from kernel.clients.patterns import Patterns
from kernel.log.encodings import Encoding, Ready
from kernel.log.frames import Frame, saved_bytes
from kernel.observer import Written

__all__ = ["Selection", "written"]


class Selection:
    """Those of `frames` that `patterns` let through, in one encoding; with `replay` events are marked as replayed.

    Iterating over it does the work; each step takes about a millisecond at most. After the last step, `wanted` are the
    frames that passed, and `messages` are their messages, ready to be joined.
    """

    __slots__ = ("_replay", "encoding", "frames", "messages", "patterns", "wanted")

    def __init__(
        self, frames: Sequence[Frame], patterns: Patterns, encoding: Encoding, *, replay: bool = False
    ) -> None:
        self.frames = frames
        self.patterns = patterns
        self.encoding = encoding
        self.wanted: list[Frame] = []
        self.messages: list[Ready] = []
        self._replay = replay

    @property
    def written(self) -> Written:
        """The sums of what a client gets, once the work is done."""
        return written(self.wanted, self.messages, self.encoding)

    def __iter__(self) -> Iterator[None]:
        """Do the work in steps."""
        encoding, replay, messages = self.encoding, self._replay, self.messages
        names = [frame.names for frame in self.frames]
        verdicts = self.patterns.all_known(names)
        if None in verdicts:
            verdicts = yield from self._compare(names, verdicts)
        self.wanted = list(compress(self.frames, verdicts))
        for frame in self.wanted:
            message = frame.made(encoding, replay=replay)
            if message is not None:
                messages.append(message)
                continue
            while (message := frame.advance(encoding, replay=replay)) is None:
                yield
            messages.append(message)
            yield

    def _compare(
        self, names: list[tuple[str, ...] | None], known: list[bool | None]
    ) -> Generator[None, None, list[bool | None]]:
        """Return the verdicts on these names; `known` are those that the patterns remember."""
        verdicts = dict(zip(names, known, strict=True))
        for each, verdict in verdicts.items():
            if each is not None and verdict is None:
                for last in self.patterns.steps(each):  # noqa: B007  its last value counts
                    yield
                verdicts[each] = last
        return [verdicts[each] for each in names]


def written(frames: Iterable[Frame], messages: Sequence[Ready], encoding: Encoding) -> Written:
    """Return the sums of these messages, which were made of these frames."""
    return Written(len(messages), sum([frame.wants_ack for frame in frames]), saved_bytes(frames, messages, encoding))

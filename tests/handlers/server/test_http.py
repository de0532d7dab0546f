"""The transport that joins writes."""

import asyncio
from typing import Any, cast

from handlers.server.http import JoiningTransport


class FakeTransport:
    """A transport that records its writes."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed_after: int | None = None

    def write(self, data: bytes) -> None:
        """Record a write."""
        self.writes.append(data)

    def close(self) -> None:
        """Record after how many writes it was closed."""
        self.closed_after = len(self.writes)

    def is_closing(self) -> bool:
        """Return True once closed."""
        return self.closed_after is not None


def joining(transport: FakeTransport) -> JoiningTransport:
    """Return a joining transport on the running event loop."""
    return JoiningTransport(cast(Any, transport), asyncio.get_running_loop())


async def test_two_writes_are_one() -> None:
    """The head and the body of an answer are one write, and so are those of the next answer."""
    transport = FakeTransport()
    joined = joining(transport)

    for part in (b"head 1 ", b"body 1", b"head 2 ", b"body 2"):
        joined.write(part)

    assert transport.writes == [b"head 1 body 1", b"head 2 body 2"]


async def test_a_single_write_is_not_delayed() -> None:
    """A write that no other follows goes out in the next iteration of the event loop, once."""
    transport = FakeTransport()

    joining(transport).write(b"head")
    await asyncio.sleep(0)

    assert transport.writes == [b"head"]


async def test_close_comes_last() -> None:
    """Closing writes first what was held back."""
    transport = FakeTransport()
    joined = joining(transport)

    joined.write(b"head")
    joined.close()
    await asyncio.sleep(0)

    assert (transport.writes, transport.closed_after) == ([b"head"], 1)


async def test_everything_else_is_delegated() -> None:
    """Other attributes are those of the wrapped transport."""
    joined = joining(FakeTransport())

    assert not joined.is_closing()
    joined.close()
    assert joined.is_closing()

"""The transport that joins writes."""

import asyncio
from typing import Any, cast

import pytest

from handlers.server.joining_transport import JoiningTransport


class FakeTransport:
    """A transport that records its writes."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed_after: int | None = None
        self.aborted = False
        self.unsent = 0

    def get_write_buffer_size(self) -> int:
        """Return how much is unsent."""
        return self.unsent

    def get_extra_info(self, name: str) -> "FakeTransport":
        """Return the socket."""
        assert name == "socket"
        return self

    def fileno(self) -> int:
        """Return the descriptor of an open socket."""
        return 0

    def setsockopt(self, *option: object) -> None:
        """Take an option of the socket."""

    def abort(self) -> None:
        """Record the end."""
        self.aborted = True

    def write_eof(self) -> None:
        """Record the end of the stream."""
        self.writes.append(b"EOF")

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
    return JoiningTransport(cast(Any, transport), asyncio.get_running_loop(), patience=0.01)


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


async def test_the_end_of_the_stream_comes_last() -> None:
    """The end of the stream comes after what was held back."""
    transport = FakeTransport()
    joined = joining(transport)

    joined.write(b"answer")
    joined.write_eof()

    assert transport.writes == [b"answer", b"EOF"]


@pytest.mark.parametrize("unsent", [0, 1])
async def test_a_client_that_takes_nothing_is_cut_off(unsent: int) -> None:
    """Closing waits for the client to take what is left, but not for ever."""
    transport = FakeTransport()
    transport.unsent = unsent

    joining(transport).close()
    assert not transport.aborted
    await asyncio.sleep(0.1)

    assert transport.aborted == bool(unsent)


async def test_everything_else_is_delegated() -> None:
    """Other attributes are those of the wrapped transport."""
    joined = joining(FakeTransport())

    assert not joined.is_closing()
    joined.close()
    assert joined.is_closing()

"""Limits on the size of a request while it is read."""

import pytest

from handlers.server.refusal import Refusal
from handlers.server.request_size import MAX_FIELD_BYTES, MAX_TARGET_BYTES, RequestSize, check_fields, check_target


def test_a_target() -> None:
    """A target of the longest length is accepted, one byte more is a 414."""
    check_target(b"x" * MAX_TARGET_BYTES)
    with pytest.raises(Refusal) as refused:
        check_target(b"x" * (MAX_TARGET_BYTES + 1))
    assert refused.value.status == 414


def test_fields() -> None:
    """Names, values and four bytes a field count; Host headers are counted for the caller."""
    fields = [(b"host", b"a"), (b"x", b"y" * (MAX_FIELD_BYTES - 23)), (b"host", b"b")]
    assert check_fields(fields) == 2
    with pytest.raises(Refusal) as refused:
        check_fields([*fields, (b"z", b"")])
    assert refused.value.status == 431


def test_an_incomplete_head() -> None:
    """Bytes that the parser keeps without reporting them are limited; a target that it has reported is none of them."""
    size = RequestSize()
    size.feed(60_000)
    size.check_head(b"x" * 60_000)
    size.feed(MAX_FIELD_BYTES)
    size.check_head(b"x" * 60_000)
    size.feed(1)
    with pytest.raises(Refusal):
        size.check_head(b"x" * 60_000)
    size.begin()
    size.check_head(b"")


def test_an_incomplete_body() -> None:
    """Framing is limited by 64 KiB and 16 bytes for each byte of the body."""
    size = RequestSize()
    size.feed(6_000_000)
    size.add_body(1_000_000)
    size.check_body()
    size.begin()
    size.add_body(10)
    size.feed(10 + MAX_FIELD_BYTES + 160)
    size.check_body()
    size.feed(1)
    with pytest.raises(Refusal):
        size.check_body()

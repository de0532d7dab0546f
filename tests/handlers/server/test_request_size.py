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
    """Names, values and four bytes a field count."""
    fields = [(b"host", b"a"), (b"x", b"y" * (MAX_FIELD_BYTES - 23)), (b"host", b"b")]
    check_fields(fields)
    with pytest.raises(Refusal) as refused:
        check_fields([*fields, (b"z", b"")])
    assert refused.value.status == 431


def test_a_small_head() -> None:
    """A head is small if it began in the present segment, and all fields in that segment are within the limit."""
    size = RequestSize()
    fields = [(b"", b"")] * (MAX_FIELD_BYTES // 4)
    size.feed(len(b":\r\n") * len(fields))
    size.begin()
    check_fields(fields)
    assert not size.is_small
    size.feed(30_000)
    assert not size.is_small
    size.begin()
    assert size.is_small


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

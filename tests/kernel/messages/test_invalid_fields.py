"""The errors of a body that could not be decoded; test_decoding.py tests them through the decoding of bodies."""

import msgspec
import pytest

from kernel.messages.invalid_fields import free_object_words, invalid, join, message_faults


@pytest.mark.parametrize(("path", "joined"), [("", "a"), ("[3].data", "[3].data.a")])
def test_join(path: str, joined: str) -> None:
    """The path of a field follows that of its object."""
    assert join(path, "a") == joined


@pytest.mark.parametrize(
    ("text", "words"), [(b"null", None), (b"{}", None), (b"5", "must be an object or null, not 5")]
)
def test_free_object_words(text: bytes, words: str | None) -> None:
    """A free object is an object or null."""
    assert free_object_words(text) == words


def test_malformed_after_the_first_error() -> None:
    """A body that is malformed after its first invalid field is reported as malformed."""
    error = invalid(msgspec.ValidationError("x"), b'{"id":"x"', lambda _, text: message_faults("event", text))
    assert [each.field for each in error.errors] == [""]
    assert error.errors[0].message.startswith("the body must be JSON; it ends too early")

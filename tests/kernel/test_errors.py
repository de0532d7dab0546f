"""The exception tree."""

from kernel.errors import (
    BroadcasterError,
    BroadcastFailed,
    CircuitOpen,
    EventTooLarge,
    FieldError,
    MessageInvalid,
    NotStarted,
    TransportError,
    TransportUnavailable,
    WriteRefused,
)


def test_tree() -> None:
    """One `except BroadcasterError` catches all, and one `except TransportError` what a retry may mend."""
    for error in (MessageInvalid, NotStarted, CircuitOpen, BroadcastFailed, TransportError):
        assert issubclass(error, BroadcasterError)
    assert issubclass(TransportUnavailable, TransportError)
    assert issubclass(WriteRefused, TransportError)
    assert not issubclass(CircuitOpen, TransportError)


def test_invalid_names_its_fields() -> None:
    """A message that breaks the rules says where, or nothing of a place when the whole body is at fault."""
    errors = [FieldError("data.status", "must be one of low, high"), FieldError("", "is not JSON")]
    error = MessageInvalid(errors)
    assert str(error) == "data.status: must be one of low, high; is not JSON"
    assert error.errors == errors


def test_too_large_names_the_event() -> None:
    """An event that is too large is an invalid message, and the error names it in its batch."""
    error = EventTooLarge(65_536, 3)
    assert isinstance(error, MessageInvalid)
    assert str(error) == "[3].data: must not be larger than 65,536 bytes as compact JSON"
    assert str(EventTooLarge(100)) == "data: must not be larger than 100 bytes as compact JSON"


def test_retry_after() -> None:
    """Both refusals of a publish say in how many seconds to come back."""
    assert CircuitOpen(12.5).retry_after == 12.5
    assert BroadcastFailed("Redis cannot be reached", 1.0).retry_after == 1.0

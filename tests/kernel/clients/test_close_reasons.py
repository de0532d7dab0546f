"""The close reasons."""

from kernel.clients.close_reasons import (
    GOING_AWAY,
    IDLE_TIMEOUT,
    INTERNAL_ERROR,
    SLOW_CLIENT,
    TRY_AGAIN_LATER,
    UNAUTHORIZED,
)


def test_close_codes() -> None:
    """Each reason has its documented code, and fits into a close frame."""
    reasons = [IDLE_TIMEOUT, UNAUTHORIZED, INTERNAL_ERROR, GOING_AWAY, TRY_AGAIN_LATER, SLOW_CLIENT]
    assert [reason.code for reason in reasons] == [1000, 1008, 1011, 1012, 1013, 4008]
    assert IDLE_TIMEOUT.text == "Idle timeout"
    assert all(len(reason.text.encode()) <= 123 for reason in reasons)

"""Pace: when long work hands the event loop back."""

from kernel.clients.pace import SECONDS, Pace


def test_pace() -> None:
    """The time is over some milliseconds after the last restart, whatever was done meanwhile."""
    now = 100.0
    pace = Pace(lambda: now)
    assert not pace.over
    now += SECONDS * 0.9
    assert not pace.over
    now += SECONDS * 0.2
    assert pace.over
    pace.restart()
    assert not pace.over

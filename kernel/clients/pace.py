"""Pace: when a long piece of work hands the event loop back."""

from collections.abc import Callable

__all__ = ["Pace"]

# How long work goes on before others get their turn. Switching takes some 10 µs, so this costs half a percent.
SECONDS = 0.002


class Pace:
    """Measures the time since the loop was handed back last; `timer()` is in seconds on any clock.

    Work looks at `over` after each part of it, hands the loop back if it is true, and calls `restart` afterwards.
    """

    __slots__ = ("_due", "_timer")

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self.restart()

    @property
    def over(self) -> bool:
        """True if it is time to hand the loop back."""
        return self._timer() >= self._due

    def restart(self) -> None:
        """Start to measure, because the loop was handed back just now."""
        self._due = self._timer() + SECONDS

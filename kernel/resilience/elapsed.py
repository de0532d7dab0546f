"""A clock for how long ago something happened."""

import time

__all__ = ["elapsed"]

# Linux: the monotonic clock stands still while the machine sleeps, this one does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed() -> float:
    """Return seconds on a clock that is never set and, where there is such a clock, runs while the machine sleeps."""
    return time.clock_gettime(_CLOCK)

"""A token bucket: limits how often something happens, and lets a burst pass."""

__all__ = ["TokenBucket"]

# A client that waits exactly as long as it was told finds its token, whatever was lost in rounding.
_TOLERANCE = 1e-6


class TokenBucket:
    """Holds at most `burst` tokens, all of them at the start, and gets `rate` a second.

    `now` is in seconds of any clock; one that is set back adds nothing until it is where it was.
    """

    __slots__ = ("_burst", "_left", "_rate", "_updated_at")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._updated_at = now

    def take(self, now: float) -> float:
        """Take one token and return 0; if there is none, return in how many seconds there will be one."""
        self._fill(now)
        missing = 1 - self._left
        if missing > _TOLERANCE:
            return missing / self._rate
        self._left -= 1
        return 0

    def spend(self, cost: float, now: float) -> float:
        """Take `cost` tokens even if there are not as many; return in how many seconds none will be missing."""
        self._fill(now)
        self._left -= cost
        return max(0.0, -self._left / self._rate)

    def _fill(self, now: float) -> None:
        if now > self._updated_at:
            self._left = min(self._burst, self._left + (now - self._updated_at) * self._rate)
            self._updated_at = now

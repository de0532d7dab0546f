"""The clock for how long ago something happened."""

import time

from kernel.resilience.elapsed import elapsed


def test_it_goes_on() -> None:
    """It never goes back, and counts at least what the monotonic clock does."""
    begin, monotonic = elapsed(), time.monotonic()
    time.sleep(0.01)
    assert elapsed() - begin >= 0.009
    assert elapsed() - begin >= (time.monotonic() - monotonic) * 0.9

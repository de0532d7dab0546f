"""Events in order, in memory and behind it in Redis."""

"""Retry, circuit breaker, and the state of the link to Redis."""

"""Retries, the circuit breaker, and the state of the link to Redis."""

from kernel.resilience.circuit import CircuitState, CircuitStatus
from kernel.resilience.retry import BroadcastRetryMetrics, broadcast_with_retry

__all__ = ["BroadcastRetryMetrics", "CircuitState", "CircuitStatus", "broadcast_with_retry"]

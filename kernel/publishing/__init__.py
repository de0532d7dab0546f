"""A message becomes a publish: retries around the transport, and flow control."""

from kernel.publishing.publisher import PublishOptions, Receipt, ReplayedReceipt

__all__ = ["PublishOptions", "Receipt", "ReplayedReceipt"]

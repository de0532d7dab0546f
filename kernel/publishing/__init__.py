"""A message becomes a publish: retries around the transport, and flow control."""

"""The HTTP and WebSocket service around the kernel, its settings and its command line."""

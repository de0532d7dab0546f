"""The others, each a server of its own: `python -m tests.benchmarks.peers.NAME PORT REDIS_URL CHANNEL`.

All take WebSocket clients, and a POST to /publish whose body goes to every client, through Redis where they have one.
They are as small and as fast as their libraries' documentation makes them, without filters, numbers or history.
"""

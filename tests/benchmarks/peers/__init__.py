"""The peers, each a separate server: `python -m tests.benchmarks.peers.NAME PORT REDIS_URL CHANNEL`.

Each accepts WebSocket clients, and a POST to /publish whose body it sends to every client, through Redis if the library
supports it. They follow the documentation of their libraries, without filters, numbering or history.
"""

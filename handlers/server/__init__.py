"""The server process: uvicorn on uvloop, its HTTP and WebSocket protocols, and the embedded Valkey server."""

"""The server process: uvicorn on uvloop, its protocols, and the embedded Valkey."""

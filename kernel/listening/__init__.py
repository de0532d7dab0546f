"""Keeps the event log in step with Redis."""

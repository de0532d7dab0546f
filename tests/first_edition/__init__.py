"""Data that the first edition of this service (commit 1a76376) wrote into Redis, and its definitions for reading.

`announcements.jsonl` holds payloads as they came over the channel; `redis.json` the position, the history and the
records (by their keys) after them; `publish.lua` is its script. All were written by that edition, on a Valkey server.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

__all__ = ["ANNOUNCEMENTS", "CHANNEL", "REDIS", "SCRIPT", "Announcement", "Entry"]

_FOLDER = Path(__file__).parent

CHANNEL = "security_events"
SCRIPT = (_FOLDER / "publish.lua").read_text()
ANNOUNCEMENTS = (_FOLDER / "announcements.jsonl").read_bytes().splitlines()
REDIS: dict[str, Any] = json.loads((_FOLDER / "redis.json").read_text())


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event as the first edition decoded it."""

    sequence: Annotated[int, msgspec.Meta(ge=1)]
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    type: Annotated[str, msgspec.Meta(min_length=1, max_length=50)]
    data: msgspec.Raw
    timestamp: str | None | msgspec.UnsetType = msgspec.UNSET
    requires_ack: bool = False
    event_type: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    published_at: float | None = None


class Announcement(msgspec.Struct, frozen=True):
    """An announcement as the first edition decoded it."""

    epoch: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    events: list[Entry]

"""`event-broadcaster tail`: a client that prints a line for each frame, and resumes after a lost connection.

`Position` keeps track of where to resume, `line_of` formats a frame, and `follow` is the loop that connects and reads.
The module uses only the documented messages, so it is also an example of a client that resumes.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from websockets.exceptions import InvalidHandshake

from handlers.cli.proxy import Proxy
from handlers.cli.sources import Closed, Refused, stream_frames, websocket_frames

__all__ = ["Position", "follow", "line_of"]

_LONGEST_DELAY: Final = 30.0
_STABLE: Final = 10.0  # seconds after which a connection counts as stable, and the delay is reset
_LONGEST_TEXT: Final = 160
_UNAUTHORIZED: Final = 1008
_CREDENTIALS: Final = "see --api-key and --token, or EVENT_BROADCASTER_API_KEY and EVENT_BROADCASTER_TOKEN"

_HINTS: Final = {
    401: _CREDENTIALS,
    404: "nothing at this path; see --url, the path is usually /ws/events",
}

# The text for each type of frame; the fields are those of the frame and its data, and None is shown as nothing.
_ALERT: Final = "{severity} alert {id} for event {event_id}, {status}"
_TEXTS: Final = {
    "event": "{camera_id}: {summary} (risk {risk_score}, {risk_level})",
    "service_status": "{service} is {status}: {message}",
    "scene_change": "{camera_id}: {change_type}, similarity {similarity_score}",
    "camera_status": "{camera_name} is {status}: {reason}",
    "alert_created": _ALERT,
    "alert_updated": _ALERT,
    "alert_acknowledged": _ALERT,
    "alert_resolved": _ALERT,
    "alert_dismissed": _ALERT,
    "alert_deleted": "alert {id}: {reason}",
    "worker_status": "{worker_name} ({worker_type}), {event_type}: {error}",
    "detection.new": "{camera_id}: {label}, confidence {confidence}",
    "detection.batch": "{camera_id}: {detection_count} detections in {batch_id}",
    "infrastructure_alert": "{alertname} {status} ({severity}): {summary}",
    "summary_update": "{hourly} / {daily}",
    "connected": "epoch {epoch}, at {lastSeq}",
    "resync_ack": "{replayed_count} replayed after {last_sequence}: {verdict}",
    "gap": "{from} to {to} are lost",
    "epoch_changed": "the numbering has restarted, epoch {epoch}",
    "system.shutdown": "{reason}: reconnecting in {delay_ms} ms",
    "error": "{error}: {message}",
}


class Position:
    """The position (`epoch`, `sequence`) up to which a client has seen everything, and from which it resumes.

    If `sequence` is None, the client does not resume: it starts with the next event.
    """

    def __init__(self, since: int | None = None) -> None:
        self.epoch = ""
        self.sequence = since
        self._replica = 0

    def query(self) -> dict[str, str]:
        """Return the query parameters for the next connection."""
        if self.sequence is None:
            return {}
        return {"since": str(self.sequence)} | ({"epoch": self.epoch} if self.epoch else {})

    def advance(self, frame: Mapping[str, Any]) -> None:
        """Advance by one frame of the server."""
        match frame:
            case {"type": "connected", "epoch": str(epoch), "lastSeq": int(replica)} if epoch:
                self._replica = replica
                if self.sequence is None:
                    self.epoch, self.sequence = epoch, replica
                else:
                    self._enter(epoch)
            case {"type": "ping", "epoch": str(epoch), "lastSeq": int(sequence)} if epoch:
                self._enter(epoch)
                self._pass(sequence)
            case {"type": "epoch_changed", "epoch": str(epoch)}:
                self._enter(epoch)
            case {"type": "resync_ack", "epoch_changed": True, "epoch": str(epoch)}:
                self._enter(epoch)
            case {"type": "resync_ack", "recovered": False} if not frame.get("gap_too_old"):
                # The requested number is higher than the newest, so it is invalid: continue from the replica's own.
                self.sequence = self._replica
            case {"type": "gap", "to": int(sequence)} | {"sequence": int(sequence)} | {"seq": int(sequence)}:
                self._pass(sequence)

    def _enter(self, epoch: str) -> None:
        # The first epoch that is seen does not invalidate the number that the user gave.
        if self.epoch and self.epoch != epoch:
            self.sequence = 0
        self.epoch = epoch

    def _pass(self, sequence: int) -> None:
        self.sequence = max(self.sequence or 0, sequence)


class _Fields(dict[str, Any]):
    def __missing__(self, _: str) -> str:
        return ""


def line_of(frame: Mapping[str, Any], clock: str) -> str:
    """Return the line for one frame: `clock` (the time of arrival), sequence number, type and a short text."""
    kind = str(frame.get("type") or frame.get("action"))
    data = frame.get("data")
    fields = {**frame, **data} if isinstance(data, dict) else dict(frame)
    if kind == "resync_ack":
        fields["verdict"] = _verdict(frame)
    # Of a summary, only the content is shown.
    shown = {name: value.get("content") if isinstance(value, dict) else value for name, value in fields.items()}
    if kind in _TEXTS:
        text = _TEXTS[kind].format_map(_Fields((name, value) for name, value in shown.items() if value is not None))
    else:
        text = json.dumps(data, ensure_ascii=False)
    text = _harmless(text).strip(" :/")
    if len(text) > _LONGEST_TEXT:
        text = text[: _LONGEST_TEXT - 1] + "…"
    replay = " (replay)" if frame.get("replay") else ""
    # A server with WEBSOCKET_NUMBER_FIELD=seq calls the number "seq"; that of `connected` is no event's.
    number = frame.get("sequence", "-" if kind == "connected" else frame.get("seq", "-"))
    return f"{clock} {number:>8} {kind:<20} {text}{replay}".rstrip()


def _harmless(text: str) -> str:
    """Return text of others as it may go to a terminal: without control characters, and as one line."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _verdict(frame: Mapping[str, Any]) -> str:
    if frame.get("recovered"):
        return "complete"
    if frame.get("gap_too_old"):
        return f"older events are no longer stored, the oldest is {frame.get('oldest_available')}"
    return "the numbering had restarted" if frame.get("epoch_changed") else "that number is higher than the newest"


def address(url: str, patterns: Sequence[str], position: Position, *, stream: bool = False) -> str:
    """Return the URL for the next connection; that of `/events` for a stream of server-sent events."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query)) | ({"events": ",".join(patterns)} if patterns else {}) | position.query()
    path = parts.path if parts.path not in ("", "/") else "/ws/events"
    scheme = parts.scheme
    if stream:
        path = path.removesuffix("/ws/events") + "/events" if path.endswith("/ws/events") else path
        scheme = scheme.replace("ws", "http")
    return parts._replace(scheme=scheme, path=path, query=urlencode(query)).geturl()


async def follow(
    url: str,
    *,
    patterns: Sequence[str] = (),
    since: int | None = None,
    headers: Iterable[tuple[str, str]] = (),
    raw: bool = False,
    stream: bool = False,
    proxy: Proxy | None = None,
    first_delay: float = 0.5,
    emit: Callable[[str], None],
) -> int:
    """Print a line for each frame until the server refuses the client; return the exit status.

    With `raw`, every frame is printed unchanged; otherwise heartbeats are answered but not printed. With `stream`,
    server-sent events are read instead of a WebSocket. A lost connection is reported on stderr and reopened after
    `first_delay` to 30 seconds.
    """
    position, headers, delay = Position(since), list(headers), first_delay
    way = f" through {proxy}" if proxy else ""
    frames = stream_frames if stream else websocket_frames
    while True:
        started = time.monotonic()
        try:
            async for text, frame in frames(address(url, patterns, position, stream=stream), headers, proxy):
                position.advance(frame)
                if raw and text:
                    emit(text)
                elif not raw and frame.get("type") != "ping":
                    emit(line_of(frame, datetime.now().strftime("%H:%M:%S.%f")[:-3]))
        except Closed as closed:
            if closed.code == _UNAUTHORIZED:
                return _give_up(f"{closed.text or 'credentials refused'} ({_CREDENTIALS})")
            reason = str(closed)
        except Refused as refused:
            # 503 means a server that drains or starts; repeating a request does not change a 4xx.
            reason = str(refused)
            if 400 <= refused.status < 500:
                hint = _HINTS.get(refused.status) or _harmless(refused.detail)
                return _give_up(f"{reason} ({hint})" if hint else reason)
        except (OSError, EOFError, TimeoutError, InvalidHandshake) as error:
            reason = f"no connection to {url.partition('?')[0]}{way}: {error or 'no answer'}"
        if time.monotonic() - started > _STABLE:
            delay = first_delay
        wait = delay * random.uniform(0.5, 1)  # noqa: S311  # spreads reconnects; not a secret
        delay = min(2 * delay, _LONGEST_DELAY)
        sys.stderr.write(f"{reason}; trying again in {wait:.1f} s\n")
        await asyncio.sleep(wait)


def _give_up(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1

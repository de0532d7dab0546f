"""`event-broadcaster demo`: publishes a realistic stream of messages of every type, repeatable by its seed.

It publishes as any producer should: over one kept-alive connection, with an `Idempotency-Key` so that it can safely
repeat a request, and waiting as long as `Retry-After` says.
"""

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection
from itertools import islice
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from handlers.cli.demo_story import Post, stream
from handlers.cli.proxy import Proxy

__all__ = ["route_of", "run"]

_ATTEMPTS: Final = 5
_TIMEOUT: Final = 60.0  # seconds; the service may need about ten of them for its own retries
_LONGEST_WAIT: Final = 60.0


class _Answer(NamedTuple):
    status: int
    headers: HTTPMessage
    body: dict[str, Any]


def route_of(kind: str) -> str:
    """Return the path for messages of a wire type."""
    if kind.startswith("alert_"):
        return f"/broadcast/alert/{kind.removeprefix('alert_')}"
    return "/broadcast/" + kind.replace(".", "/").replace("_", "-")


def run(
    url: str,
    *,
    rate: float,
    count: int | None,
    seed: int,
    api_key: str = "",
    proxy: Proxy | None = None,
    emit: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Publish `count` messages (None: until interrupted), `rate` per second (0: as fast as possible).

    `emit` gets a line with the sequence number and the type of each message; refusals and a summary go to stderr.
    Returns the exit status: 1 if a message was refused or the service did not answer, otherwise 0.
    """
    sent = refused = 0
    lost = False
    started = due = time.monotonic()
    try:
        with closing(_Service(url, api_key, proxy)) as service:
            for post in islice(_now_stream(seed), count):
                sleep(max(0.0, due - time.monotonic()))
                # After a slow period of the service, do not catch up by more than one second of messages.
                due = max(due, time.monotonic() - 1) + (1 / rate if rate else 0)
                answer = _post_with_retries(service, post, sleep)
                if answer.status == 202:
                    sent += 1
                    emit(f"{answer.body.get('sequence', '-'):>8} {post.kind}")
                else:
                    refused += 1
                    sys.stderr.write(f"{post.kind} refused: {_reason(answer)}\n")
                    if answer.status == 401:
                        sys.stderr.write("set EVENT_BROADCASTER_API_KEY or use --api-key\n")
                        break
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        way = f" through {proxy}" if proxy else ""
        sys.stderr.write(f"no answer from {url}{way}: {reason}; is `event-broadcaster serve` running?\n")
        lost = True
    except KeyboardInterrupt:
        pass
    sys.stderr.write(f"{sent} messages sent, {refused} refused, in {time.monotonic() - started:.1f} s\n")
    return 1 if refused or lost else 0


def _now_stream(seed: int) -> Iterator[Post]:
    return stream(seed, lambda: datetime.now(UTC))


class _Service:
    """One HTTP connection to the service, reopened if it is lost."""

    def __init__(self, url: str, api_key: str, proxy: Proxy | None) -> None:
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        host, port = proxy.address if proxy else (parts.hostname or "", parts.port)
        self._connection = kind(host, port, timeout=_TIMEOUT)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | ({"X-API-Key": api_key} if api_key else {})
        if proxy and parts.scheme == "https":
            self._connection.set_tunnel(parts.hostname or "", parts.port, proxy.headers)
        elif proxy:
            # Proxies often allow CONNECT to port 443 alone; a plain request names the whole URL (RFC 9112, 3.2.2).
            self._prefix = f"http://{parts.netloc.rpartition('@')[2]}{self._prefix}"
            self._headers |= proxy.headers

    def post(self, post: Post, key: str) -> _Answer:
        """Post one message; if the server has closed the connection in the meantime, reconnect once."""
        request = "POST", self._prefix + route_of(post.kind), json.dumps(post.data)
        headers = self._headers | {"Idempotency-Key": key}
        try:
            self._connection.request(*request, headers)
            response = self._connection.getresponse()
        except (ConnectionResetError, BrokenPipeError):  # includes http.client's RemoteDisconnected
            self._connection.close()
            self._connection.request(*request, headers)
            response = self._connection.getresponse()
        text = response.read()
        try:
            body = json.loads(text)
        except ValueError:
            body = None
        return _Answer(response.status, response.headers, body if isinstance(body, dict) else {})

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _post_with_retries(service: _Service, post: Post, sleep: Callable[[float], None]) -> _Answer:
    """Post a message; while the service answers 503, wait as long as it asks and repeat, up to five attempts."""
    key = f"demo-{uuid.uuid4()}"
    for _ in range(_ATTEMPTS - 1):
        answer = service.post(post, key)
        if answer.status != 503:
            return answer
        asked = answer.headers.get("Retry-After", "")
        wait = min(float(asked), _LONGEST_WAIT) if asked.isdecimal() else 1.0
        sys.stderr.write(f"{post.kind} not accepted: {_reason(answer)}; trying again in {wait:.0f} s\n")
        sleep(wait)
    return service.post(post, key)


def _reason(answer: _Answer) -> str:
    """Return the content of a problem document as one line."""
    errors = [
        f"{error.get('field')}: {error.get('message')}"
        for error in answer.body.get("errors", [])
        if isinstance(error, dict)
    ]
    detail = str(answer.body.get("detail") or answer.body.get("title") or "")
    return " ".join(f"{answer.status} {'; '.join([detail, *errors])}".split())

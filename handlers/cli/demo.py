"""`event-broadcaster demo`: posts a believable stream of all message families, the same for the same seed.

It posts as any producer should: over one connection that is kept alive, with an `Idempotency-Key` so that a repetition
does no harm, and heeding `Retry-After`. What is posted is told in story.py.
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

__all__ = ["route_of", "run"]

_ATTEMPTS: Final = 5
_TIMEOUT: Final = 60.0  # seconds; the service may spend some ten of them on its own retries
_LONGEST_WAIT: Final = 60.0


class _Answer(NamedTuple):
    status: int
    headers: HTTPMessage
    body: dict[str, Any]


def route_of(kind: str) -> str:
    """Give the path on which messages of a wire type are posted."""
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
    emit: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Post `count` messages (None: until interrupted), `rate` a second (0: as fast as possible).

    Prints sequence and type of each; refusals and a summary go to stderr. Returns the exit status: 1 if a message was
    refused or the service is not there, otherwise 0.
    """
    sent = refused = 0
    lost = False
    started = due = time.monotonic()
    try:
        with closing(_Service(url, api_key)) as service:
            for post in islice(_now_stream(seed), count):
                sleep(max(0.0, due - time.monotonic()))
                # A service that is slow for a while is not flooded afterwards.
                due = max(due, time.monotonic() - 1) + (1 / rate if rate else 0)
                answer = _post_patiently(service, post, sleep)
                if answer.status == 202:
                    sent += 1
                    emit(f"{answer.body.get('sequence', '-'):>8} {post.kind}")
                else:
                    refused += 1
                    sys.stderr.write(f"{post.kind} refused: {_reason(answer)}\n")
                    if answer.status == 401:
                        sys.stderr.write("give a key with --api-key or EVENT_BROADCASTER_API_KEY\n")
                        break
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        sys.stderr.write(f"no answer from {url}: {reason}; is `event-broadcaster serve` running?\n")
        lost = True
    except KeyboardInterrupt:
        pass
    sys.stderr.write(f"{sent} messages sent, {refused} refused, in {time.monotonic() - started:.1f} s\n")
    return 1 if refused or lost else 0


def _now_stream(seed: int) -> Iterator[Post]:
    return stream(seed, lambda: datetime.now(UTC))


class _Service:
    """The service as a producer sees it: one connection, opened again when it was lost."""

    def __init__(self, url: str, api_key: str) -> None:
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | ({"X-API-Key": api_key} if api_key else {})

    def post(self, post: Post, key: str) -> _Answer:
        """Post one message; a connection that the server closed in the meantime is made once more."""
        request = "POST", self._prefix + route_of(post.kind), json.dumps(post.data)
        headers = self._headers | {"Idempotency-Key": key}
        try:
            self._connection.request(*request, headers)
            response = self._connection.getresponse()
        except (ConnectionResetError, BrokenPipeError):  # http.client's RemoteDisconnected is one of them
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


def _post_patiently(service: _Service, post: Post, sleep: Callable[[float], None]) -> _Answer:
    """Post a message, and while the service is unavailable wait as long as it says, a few times."""
    key = f"demo-{uuid.uuid4()}"
    for _ in range(_ATTEMPTS - 1):
        answer = service.post(post, key)
        if answer.status != 503:
            return answer
        asked = answer.headers.get("Retry-After", "")
        wait = min(float(asked), _LONGEST_WAIT) if asked.isdecimal() else 1.0
        sys.stderr.write(f"{post.kind} not taken: {_reason(answer)}; trying again in {wait:.0f} s\n")
        sleep(wait)
    return service.post(post, key)


def _reason(answer: _Answer) -> str:
    """Say in one line what a problem document says."""
    errors = [
        f"{error.get('field')}: {error.get('message')}"
        for error in answer.body.get("errors", [])
        if isinstance(error, dict)
    ]
    detail = str(answer.body.get("detail") or answer.body.get("title") or "")
    return " ".join(f"{answer.status} {'; '.join([detail, *errors])}".split())

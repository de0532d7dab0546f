"""The route `/events/poll`: the events after a position, for clients that can only ask.

A poll is a client that resumes, and lives until its page is complete or its client has waited long enough. It counts as
a connection while it waits.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.exceptions import ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.params import SkipValidation

from handlers.problems import QueryInvalid
from handlers.routes.admission import admit
from handlers.routes.dependencies import Broadcaster
from handlers.routes.query_options import QueryOptions
from handlers.server.sinks import http_connection, until_disconnected
from handlers.settings import Settings
from kernel import EventBroadcaster, FieldError
from kernel.clients import NORMAL, PAGE_ENCODING, Page, PageResult, Patterns, Resume

__all__ = ["PollAnswer", "poll_route"]

_DEFAULT_WAIT: Final = 20.0
_LONGEST_WAIT: Final = 60.0
# A poll that needs the history in Redis gets this many seconds for the read, however short it wants to wait for events.
_LEAST_SECONDS: Final = 1.0
_NO_STORE: Final = {"cache-control": "no-store"}


class PollAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of a poll: `epoch` and `last_seq` are the position to ask from next.

    `recovered` is true if `events` are all that match after the position asked from. Otherwise `gap_too_old` (with
    `oldest_available`) and `epoch_changed` say why not; if neither is set, that position was beyond the newest event.
    `more` is true if further events are known to follow.
    """

    epoch: str
    last_seq: int = msgspec.field(name="lastSeq")
    events: list[msgspec.Raw]
    recovered: bool
    gap_too_old: bool = False
    oldest_available: int | None = None
    epoch_changed: bool = False
    more: bool = False


def poll_route(settings: Settings) -> HTTPRouteHandler:
    """Return the route `/events/poll` for these settings."""

    @get("/events/poll", tags=["listen"])
    async def poll(request: SkipValidation[Request[Any, Any, Any]], broadcaster: Broadcaster) -> Response[PollAnswer]:
        query = admit(request, broadcaster, settings)
        options = QueryOptions.from_query(query, request.headers.get("last-event-id", ""))
        wait = _wait(query, options.problems)
        if options.problems:
            raise QueryInvalid(tuple(FieldError(*problem.split(": ", 1)) for problem in options.problems))
        if not broadcaster.ready:
            raise ServiceUnavailableException("Redis was never reached, so there is no position yet.")
        if options.resume is None:
            answer = PollAnswer(epoch=broadcaster.epoch, last_seq=broadcaster.sequence, events=[], recovered=True)
        else:
            result = await _page(broadcaster, options.patterns, options.resume, wait, request)
            if result is None:
                raise ServiceUnavailableException("Redis cannot be reached, and the events are not in memory.")
            answer = _answer(result)
        return Response(answer, headers=_NO_STORE)

    return poll


async def _page(
    broadcaster: EventBroadcaster, patterns: Patterns, resume: Resume, wait: float, request: Request[Any, Any, Any]
) -> PageResult | None:
    """Collect a page of events; return None if they cannot be read."""
    page = Page()
    client = broadcaster.connect(page, PAGE_ENCODING, patterns=patterns, resume=resume)
    connection = http_connection(request.scope)
    watch = None

    def leave() -> None:
        page.close(NORMAL)

    if connection is not None:
        connection.on_lost = leave
    else:
        watch = asyncio.create_task(until_disconnected(request.receive, leave))
    loop = asyncio.get_running_loop()
    timers = (
        loop.call_later(wait, page.expire),
        loop.call_later(max(wait, _LEAST_SECONDS), page.close, NORMAL),
    )
    try:
        await page.completed()
        return page.result(client)
    finally:
        for timer in timers:
            timer.cancel()
        if connection is not None:
            connection.on_lost = None
        if watch is not None:
            watch.cancel()
        broadcaster.disconnect(client)


def _answer(result: PageResult) -> PollAnswer:
    verdict = result.verdict
    return PollAnswer(
        epoch=result.position.epoch,
        last_seq=result.position.sequence,
        events=[msgspec.Raw(event) for event in result.events],
        recovered=verdict.recovered,
        gap_too_old=verdict.gap_too_old,
        oldest_available=verdict.oldest_available,
        epoch_changed=verdict.epoch_changed,
        more=result.more,
    )


def _wait(query: Mapping[str, str], problems: list[str]) -> float:
    """Return the seconds to wait for events."""
    text = query.get("wait")
    if text is None:
        return _DEFAULT_WAIT
    try:
        seconds = float(text) if len(text) <= 32 and text.isascii() and text.isprintable() else -1.0
    except ValueError:
        seconds = -1.0
    if 0 <= seconds <= _LONGEST_WAIT:
        return seconds
    problems.append(f"wait: must be a number of seconds from 0 to {_LONGEST_WAIT:g}")
    return _DEFAULT_WAIT

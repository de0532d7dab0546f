"""The query options of a client that listens: which events it wants, from which position, and in which format.

A parameter that is invalid counts as absent and is listed in `problems`. A client that has a connection is told
and stays connected; a poll is refused.
"""

from collections.abc import Mapping
from typing import NamedTuple

from kernel.clients import EVERYTHING, Patterns, Refused, Resume, patterns_from, sequence_from

__all__ = ["QueryOptions"]

_MAX_EPOCH = 256  # characters
_MAX_DIGITS = 1000


class QueryOptions(NamedTuple):
    """The options in a query string, and what is wrong with the query."""

    patterns: Patterns
    resume: Resume | None
    zlib: bool
    problems: list[str]

    @classmethod
    def from_query(cls, query: Mapping[str, str], last_event_id: str | None = None) -> "QueryOptions":
        """Read the parameters `events`, `since`, `epoch` and `format`.

        For server-sent events, `last_event_id` is the text of the header; a position in it has precedence over one in
        the parameter `last_event_id`, and that over `since`.
        """
        problems: list[str] = []
        patterns = _patterns(query, problems)
        resume = None
        if last_event_id:
            resume = _resume_after(last_event_id, "Last-Event-ID", problems)
        if resume is None and last_event_id is not None and query.get("last_event_id"):
            resume = _resume_after(query["last_event_id"], "last_event_id", problems)
        if resume is None:
            resume = _resume(query, problems)
        if query.get("format", "json") not in ("json", "zlib"):
            problems.append("format: must be json or zlib")
        return cls(patterns, resume, query.get("format") == "zlib", problems)


def _patterns(query: Mapping[str, str], problems: list[str]) -> Patterns:
    globs = [glob.strip() for glob in query.get("events", "").split(",") if glob.strip()]
    if globs:
        try:
            return EVERYTHING.with_added(patterns_from(globs, EVERYTHING))
        except Refused as refused:
            problems.append(f"events: {refused}")
    return EVERYTHING


def _resume(query: Mapping[str, str], problems: list[str]) -> Resume | None:
    since, epoch = query.get("since"), query.get("epoch")
    if since is None:
        if epoch:
            problems.append("epoch: has no effect without since")
        return None
    try:
        # int() would also accept "+1", " 1", "1_000" and the digits of other scripts.
        number = int(since) if since.isascii() and since.isdigit() and len(since) < _MAX_DIGITS else None
        sequence = sequence_from(number, "since", 0)
    except Refused as refused:
        problems.append(f"since: {refused}")
        return None
    if epoch and len(epoch) > _MAX_EPOCH:
        problems.append(f"epoch: must be a string of at most {_MAX_EPOCH} characters")
        epoch = None
    return Resume("events", sequence, epoch or None)


def _resume_after(id: str, name: str, problems: list[str]) -> Resume | None:
    """Read the `id` of an event, which is EPOCH:SEQUENCE."""
    epoch, _, number = id.rpartition(":")
    if epoch and len(epoch) <= _MAX_EPOCH and number.isascii() and number.isdigit() and len(number) < _MAX_DIGITS:
        return Resume("events", int(number), epoch)
    problems.append(f"{name}: must be the id of an event, EPOCH:SEQUENCE")
    return None

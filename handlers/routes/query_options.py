"""The query of a WebSocket's URL, read into options."""

from collections.abc import Mapping
from typing import NamedTuple

from kernel.clients import EVERYTHING, Patterns, Refused, Resume, patterns_from, sequence_from

__all__ = ["QueryOptions", "query_options"]


class QueryOptions(NamedTuple):
    """What a query asks for, and what of it cannot be used."""

    patterns: Patterns
    resume: Resume | None
    zlib: bool
    problems: list[str]


def query_options(query: Mapping[str, str]) -> QueryOptions:
    """Read the query; a parameter that cannot be used counts as absent and is named among the problems."""
    problems: list[str] = []
    patterns = EVERYTHING
    globs = [glob.strip() for glob in query.get("events", "").split(",") if glob.strip()]
    if globs:
        try:
            patterns = EVERYTHING.with_added(patterns_from(globs, EVERYTHING))
        except Refused as refused:
            problems.append(f"events: {refused}")
    since, epoch = query.get("since"), query.get("epoch")
    resume = None
    if since is not None:
        try:
            # int() also takes "+1", " 1", "1_000" and other scripts' digits
            number = int(since) if since.isascii() and since.isdigit() and len(since) < 1000 else None
            resume = Resume("events", sequence_from(number, "since", 0), epoch or None)
        except Refused as refused:
            problems.append(f"since: {refused}")
    if epoch and since is None:
        problems.append("epoch: says nothing without since")
    elif epoch and len(epoch) > 256 and resume is not None:
        problems.append("epoch: must be a string of at most 256 characters")
        resume = resume._replace(epoch=None)
    if query.get("format", "json") not in ("json", "zlib"):
        problems.append("format: must be json or zlib")
    return QueryOptions(patterns, resume, query.get("format") == "zlib", problems)

"""The messages of the demo: valid, complete and repeatable."""

import json
from datetime import UTC, datetime, timedelta
from itertools import count, islice

import pytest

from handlers.cli.demo_story import Post, stream
from kernel.messages import MESSAGE_TYPES, decode_message


def first_messages(seed: int, messages: int, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> list[Post]:
    """Return the first messages of a stream; each call of the clock is a second later."""
    seconds = count()
    return list(islice(stream(seed, lambda: start + timedelta(seconds=next(seconds))), messages))


@pytest.mark.parametrize("seed", range(20))
def test_covers_all_families(seed: int) -> None:
    """Any 200 messages in a row contain every type."""
    kinds = [post.kind for post in first_messages(seed, 600)]
    for start in range(400):
        assert set(kinds[start : start + 200]) == set(MESSAGE_TYPES)


def test_repeatable() -> None:
    """The same seed gives the same messages apart from the times; another seed gives others."""
    assert first_messages(3, 500) == first_messages(3, 500)
    later = first_messages(3, 500, datetime(2027, 5, 5, tzinfo=UTC))
    assert [post.kind for post in later] == [post.kind for post in first_messages(3, 500)]
    assert [post.kind for post in first_messages(4, 500)] != [post.kind for post in first_messages(3, 500)]


def test_valid() -> None:
    """The service accepts every message unchanged."""
    for post in first_messages(1, 1000):
        decode_message(post.kind, json.dumps(post.data).encode())


def test_alerts_live() -> None:
    """Each alert is created, updated, acknowledged or dismissed, and ends once."""
    lives: dict[str, list[str]] = {}
    for post in first_messages(1, 1000):
        if post.kind.startswith("alert_"):
            lives.setdefault(post.data["id"], []).append(post.kind.removeprefix("alert_"))
    whole = {("acknowledged", "resolved"), ("acknowledged", "dismissed"), ("dismissed", "deleted")}
    begun = {(), ("acknowledged",), ("dismissed",)}
    endings = [tuple(life[2:]) for life in lives.values() if len(life) > 1]
    assert {life[0] for life in lives.values()} == {"created"}
    assert {life[1] for life in lives.values() if len(life) > 1} == {"updated"}
    assert whole <= set(endings) <= whole | begun


def test_alert_belongs_to_its_event() -> None:
    """An alert names the event that caused it, even if other scenarios run at the same time."""
    ratings = {}
    for post in first_messages(2, 1000):
        if post.kind == "event":
            ratings[post.data["id"]] = post.data["risk_level"]
        if post.kind == "alert_created":
            assert ratings[post.data["event_id"]] == post.data["severity"]

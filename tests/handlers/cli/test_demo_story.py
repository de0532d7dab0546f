"""The demo's story (section 1, try): believable for the service, complete, repeatable."""

import json
from datetime import UTC, datetime, timedelta
from itertools import count, islice

import pytest

from handlers.cli.demo_story import Post, stream
from kernel.messages import MESSAGE_TYPES, decode_message


def told(seed: int, messages: int, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> list[Post]:
    """Give the first messages of a story; each look at the clock is a second later."""
    seconds = count()
    return list(islice(stream(seed, lambda: start + timedelta(seconds=next(seconds))), messages))


@pytest.mark.parametrize("seed", range(20))
def test_covers_all_families(seed: int) -> None:
    """Section 1, try: any 200 messages in a row cover all wire types."""
    kinds = [post.kind for post in told(seed, 600)]
    for start in range(400):
        assert set(kinds[start : start + 200]) == set(MESSAGE_TYPES)


def test_repeatable() -> None:
    """Section 1, try: the same seed gives the same messages, times aside; another seed others."""
    assert told(3, 500) == told(3, 500)
    later = told(3, 500, datetime(2027, 5, 5, tzinfo=UTC))
    assert [post.kind for post in later] == [post.kind for post in told(3, 500)]
    assert [post.kind for post in told(4, 500)] != [post.kind for post in told(3, 500)]


def test_valid() -> None:
    """Section 3, messages: every message of the story is one that the service accepts as it stands."""
    for post in told(1, 1000):
        decode_message(post.kind, json.dumps(post.data).encode())


def test_alerts_live() -> None:
    """Section 1, try: an alert is created, updated, acknowledged or dismissed, and ends once."""
    lives: dict[str, list[str]] = {}
    for post in told(1, 1000):
        if post.kind.startswith("alert_"):
            lives.setdefault(post.data["id"], []).append(post.kind.removeprefix("alert_"))
    whole = {("acknowledged", "resolved"), ("acknowledged", "dismissed"), ("dismissed", "deleted")}
    begun = {(), ("acknowledged",), ("dismissed",)}
    endings = [tuple(life[2:]) for life in lives.values() if len(life) > 1]
    assert {life[0] for life in lives.values()} == {"created"}
    assert {life[1] for life in lives.values() if len(life) > 1} == {"updated"}
    assert whole <= set(endings) <= whole | begun


def test_alert_belongs_to_its_event() -> None:
    """Section 1, try: an alert names the event it was raised for, also while other things happen at the same time."""
    ratings = {}
    for post in told(2, 1000):
        if post.kind == "event":
            ratings[post.data["id"]] = post.data["risk_level"]
        if post.kind == "alert_created":
            assert ratings[post.data["event_id"]] == post.data["severity"]

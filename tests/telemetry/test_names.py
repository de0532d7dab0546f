"""The names of spans and attributes."""

from pathlib import Path

import pytest

from kernel.messages import MESSAGE_TYPES
from telemetry import names

README = Path(names.__file__).with_name("README.md").read_text()
ATTRIBUTES = [
    value
    for name in names.__all__
    if isinstance(value := getattr(names, name), str) and "." in value and " " not in value
]


@pytest.mark.parametrize("verb", ["publish", "retry", "deliver"])
def test_names_are_bounded(verb: str) -> None:
    """A span is named after the built-in type of its event; others share a name, and so do batches."""
    of_verb = getattr(names, verb.upper())
    for wire_type in MESSAGE_TYPES:
        assert of_verb.of([wire_type]) == f"{verb} {wire_type}"
    for wire_type in ("batch", "other", "", "x" * 1000):
        assert of_verb.of([wire_type]) == f"{verb} other"
    assert of_verb.of(["event", "event"]) == f"{verb} batch"
    assert len(of_verb) == len(MESSAGE_TYPES)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_the_readme_lists_every_attribute(attribute: str) -> None:
    """The README has each attribute in a table, those of this service without their prefix."""
    assert f"`{attribute.removeprefix('event_broadcaster.')}`" in README


def test_durations() -> None:
    """A duration is rounded to microseconds."""
    assert names.seconds(0.1234567) == 0.123457

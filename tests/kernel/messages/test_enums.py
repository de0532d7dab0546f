"""The enums of the messages."""

import pytest

from kernel.messages.enums import CameraEventType, RiskLevel


@pytest.mark.parametrize("spelt", ["high", "HIGH", "hIgH"])
def test_any_case(spelt: str) -> None:
    """A value is accepted in any letter case and converted to lower case."""
    assert RiskLevel(spelt) is RiskLevel.HIGH
    assert str(RiskLevel(spelt)) == "high"


@pytest.mark.parametrize("value", ["", "zz", " high", None, 5])
def test_unknown(value: object) -> None:
    """An unknown value raises ValueError."""
    with pytest.raises(ValueError, match="is not a valid RiskLevel"):
        RiskLevel(value)


def test_exact_case() -> None:
    """The `event_type` of camera_status is accepted in its exact case only."""
    with pytest.raises(ValueError, match="is not a valid CameraEventType"):
        CameraEventType("camera.Online")

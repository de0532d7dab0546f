"""The enums of the messages."""

import pytest

from kernel.messages.enums import CameraEventType, RiskLevel


@pytest.mark.parametrize("spelt", ["high", "HIGH", "hIgH"])
def test_any_case(spelt: str) -> None:
    """Section 3, `ci`: a value is read in any letter case, and is in lower case from then on."""
    assert RiskLevel(spelt) is RiskLevel.HIGH
    assert str(RiskLevel(spelt)) == "high"


@pytest.mark.parametrize("value", ["", "zz", " high", None, 5])
def test_unknown(value: object) -> None:
    """Section 3, enums: what is none of the values is refused."""
    with pytest.raises(ValueError, match="is not a valid RiskLevel"):
        RiskLevel(value)


def test_exact_case() -> None:
    """Section 3, camera_status: `event_type` is read in its exact case only."""
    with pytest.raises(ValueError, match="is not a valid CameraEventType"):
        CameraEventType("camera.Online")

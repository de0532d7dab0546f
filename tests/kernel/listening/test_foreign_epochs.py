"""Another deployment on the same channel is noticed, and an epoch change is not taken for one."""

import pytest

from kernel.listening.foreign_epochs import ForeignEpochs
from kernel.position import Position

SAID = "Set REDIS_EVENT_CHANNEL"


def look(epochs: ForeignEpochs, now: float, *positions: tuple[str, int], known: tuple[str, ...] = ("ours",)) -> None:
    """Note what a check at this time has not found."""
    epochs.unexplained([Position(*position) for position in positions], known, now)


def test_another_deployment_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """An epoch that three checks have not found, with rising numbers and for some time, is warned of, once."""
    epochs = ForeignEpochs(10.0)
    look(epochs, 0.0, ("theirs", 7), ("theirs", 8))
    look(epochs, 5.0, ("theirs", 9))
    look(epochs, 9.0, ("theirs", 10))
    assert SAID not in caplog.text
    look(epochs, 10.0, ("theirs", 12), ("theirs", 11))
    assert caplog.text.count(SAID) == 1
    look(epochs, 20.0, ("theirs", 13))
    assert caplog.text.count(SAID) == 1


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([(0.0, 5), (20.0, 6)], id="two checks"),
        pytest.param([(0.0, 5), (10.0, 5), (20.0, 5), (30.0, 4)], id="the same numbers again"),
        pytest.param([(0.0, 5), (0.1, 6), (0.2, 7), (0.3, 8)], id="within a moment, as when an epoch begins"),
    ],
)
def test_what_is_no_deployment(caplog: pytest.LogCaptureFixture, looks: list[tuple[float, int]]) -> None:
    """Announcements that are late, repeated, or ahead of the check are not another deployment."""
    epochs = ForeignEpochs(10.0)
    for now, sequence in looks:
        look(epochs, now, ("theirs", sequence))
    assert SAID not in caplog.text


def test_epochs_of_this_replica(caplog: pytest.LogCaptureFixture) -> None:
    """The present epoch and those that were left are never another deployment's."""
    epochs = ForeignEpochs(10.0)
    for number in range(10):
        look(epochs, 10.0 * number, ("ours", number), ("left", number), known=("ours", "left"))
    assert SAID not in caplog.text


def test_invented_names_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """However many names are invented, few are watched, and those received last."""
    epochs = ForeignEpochs(10.0)
    for number in range(1000):
        look(epochs, float(number), (f"invented-{number}", 1))
        look(epochs, float(number), ("theirs", number))
    assert caplog.text.count(SAID) == 1
    assert "epoch theirs" in caplog.text

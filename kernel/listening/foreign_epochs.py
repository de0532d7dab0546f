"""Notices another deployment that uses the same channel of the same Redis server.

Redis ignores database numbers for channels, so two deployments on two databases receive each other's announcements. The
positions of the other one belong to an epoch that this replica never finds in its own database, and go on rising. An
announcement of another epoch alone says little: the epoch may have changed between the announcement and the check that
looks at it, and announcements of an epoch that was left may be late. Only an epoch that at least three checks have not
found, over some time, with a higher number each time, is that of another deployment.
"""

import logging
from collections.abc import Iterable

from kernel.position import Position

__all__ = ["ForeignEpochs"]

_logger = logging.getLogger(__name__)

_CHECKS = 3
# How many epochs are watched at a time: any program can invent names.
_MOST_WATCHED = 16


class ForeignEpochs:
    """Watches positions that no check has found; `patience` is in seconds. It warns once."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        # by epoch: the highest number, the number of checks, the time of the first one
        self._watched: dict[str, tuple[int, int, float]] = {}
        self._warned = False

    def unexplained(self, positions: Iterable[Position], known: Iterable[str], now: float) -> None:
        """Note the positions that a check did not find; `known` are the epochs of this replica, present and left."""
        highest: dict[str, int] = {}
        for epoch, sequence in positions:
            if epoch not in known:
                highest[epoch] = max(sequence, highest.get(epoch, 0))
        for epoch, sequence in highest.items():
            before, checks, since = self._watched.pop(epoch, (-1, 0, now))
            self._watched[epoch] = max(before, sequence), checks + (sequence > before), since
            if checks + 1 >= _CHECKS and sequence > before and now - since >= self._patience:
                self._warn(epoch)
        while len(self._watched) > _MOST_WATCHED:
            del self._watched[next(iter(self._watched))]

    def _warn(self, epoch: str) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "another deployment publishes on the same channel of this Redis server (epoch %s), perhaps in another "
                "database, which channels do not regard; its events are skipped, but each costs work. "
                "Set REDIS_EVENT_CHANNEL to a different name for each deployment",
                epoch,
            )

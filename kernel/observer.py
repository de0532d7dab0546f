"""What the kernel tells whoever watches it: hooks that do nothing here, called per event or batch, never per client.

An observer is a guest. Details are frozen; one that raises is logged once and switched off (`Guarded`).
"""

import logging
from typing import Any

import msgspec

from kernel.circuit import Transition
from kernel.transport import Position, Publication

__all__ = ["Delivered", "Guarded", "Lost", "Observer", "Published", "Refilled", "Replayed", "Retried"]

_logger = logging.getLogger(__name__)


class Published(msgspec.Struct, frozen=True):
    """A publish that succeeded after `retries` retries; `types` are the wire types of its events."""

    types: list[str]
    publication: Publication
    retries: int


class Retried(msgspec.Struct, frozen=True):
    """A retry is about to be made, the `attempt`th, after `delay` seconds."""

    types: list[str]
    attempt: int
    delay: float
    error: str


class Delivered(msgspec.Struct, frozen=True):
    """A batch of events was handed to the live clients; `writes` counts messages over all of them."""

    first: Position
    last: Position
    deliveries: int


class Replayed(msgspec.Struct, frozen=True):
    """A resume was answered with `count` messages from after `first` up to `last`."""

    first: Position
    last: Position
    count: int
    recovered: bool


class Refilled(msgspec.Struct, frozen=True):
    """Events that did not arrive by themselves were fetched from the history: those after `first` up to `last`."""

    first: Position
    last: Position


class Lost(msgspec.Struct, frozen=True):
    """Events `first` to `last` of an epoch were no longer in the history when this replica looked for them."""

    epoch: str
    first: int
    last: int


class Observer:
    """The hooks; override those of interest."""

    def published(self, published: Published) -> None:
        """A publish succeeded."""

    def retried(self, retried: Retried) -> None:
        """A publish is tried again."""

    def delivered(self, delivered: Delivered) -> None:
        """A batch went to the live clients."""

    def replayed(self, replayed: Replayed) -> None:
        """A resume was answered."""

    def refilled(self, refilled: Refilled) -> None:
        """This replica had missed events and has them now."""

    def lost(self, lost: Lost) -> None:
        """Events are lost; clients were told by a gap."""

    def foreign(self, count: int) -> None:
        """Documents on the channel were none of ours."""

    def circuit_moved(self, transition: Transition) -> None:
        """The circuit of the link to Redis opened, half-opened or closed."""

    def listener_restarted(self, reason: str) -> None:
        """The subscription is made anew."""


class Guarded(Observer):
    """Passes everything on to a guest until the guest raises."""

    def __init__(self, guest: Observer) -> None:
        self._guest: Observer | None = guest

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401  one wrapper for every hook
        if name.startswith("_"):
            return object.__getattribute__(self, name)

        def hook(*details: object) -> None:
            if self._guest is None:
                return
            try:
                getattr(self._guest, name)(*details)
            except Exception:
                _logger.exception("an observer failed in %s and is switched off", name)
                self._guest = None

        return hook

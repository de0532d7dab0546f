"""File descriptors: how many connections may be open, so that one is always left for Redis, health and publishes.

Without a cap, clients could take every descriptor of the process: Redis could not be reached again after a lost
connection, and the health routes could not be asked why. The cap has two parts. WebSockets get the larger part of the
descriptors, and a client over it is closed with 1013. All connections together leave a reserve for Redis, telemetry and
files; when they reach their cap, the connection that has waited longest in a state that may be ended makes way for the
new one (see `ConnectionLimit`).
"""

import logging
import resource
from typing import Final, NamedTuple, Protocol

__all__ = ["ConnectionLimit", "DescriptorPlan", "Evictable", "raise_descriptor_limit"]

_RESERVE: Final = 32
_UNLIMITED: Final = 1 << 30
_FEW: Final = 4096

_logger = logging.getLogger(__name__)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors to the hard one, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:  # macOS allows less than it reports
            _logger.warning("the limit of %d file descriptors could not be raised to %d: %s", soft, hard, error)
        else:
            soft = hard
    return _UNLIMITED if soft == resource.RLIM_INFINITY else min(soft, _UNLIMITED)


class DescriptorPlan(NamedTuple):
    """The division of descriptors: the most connections of any kind, and the most WebSockets among them."""

    descriptors: int
    connections: int
    websockets: int

    @classmethod
    def for_limit(cls, descriptors: int) -> "DescriptorPlan":
        """Divide this number of descriptors."""
        connections = max(8, descriptors - max(_RESERVE, descriptors // 64))
        not_websockets = connections // (4 if connections < 128 else 8)
        return cls(descriptors, connections, connections - not_websockets)

    def cap(self, configured: int) -> int:
        """Return the cap on WebSockets, from the configured one (0: none) and the descriptors; log it."""
        cap = min(configured or self.websockets, self.websockets)
        if cap != configured:
            short = configured > cap or cap < _FEW
            text = (
                "the limit of %d file descriptors allows %d connections, %d of them WebSockets (more are closed with "
                "1013); for more, raise the limit (ulimit -n, LimitNOFILE= of systemd, ulimits of the container)"
            )
            _logger.log(logging.WARNING if short else logging.INFO, text, self.descriptors, self.connections, cap)
        return cap


class Evictable(Protocol):
    """A connection that can be ended to make way for another one."""

    def evict(self) -> None:
        """End the connection at once."""


class ConnectionLimit:
    """Keeps the number of open connections within `most`.

    A connection is evictable while it is idle, while its request is incomplete, and during its closing handshake. Over
    the limit, the one that has been evictable longest is ended. A connection whose request is being answered is never
    ended; a new connection is refused then.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._evictable: dict[Evictable, None] = {}
        self._logged = False

    def admit(self, count: int) -> bool:
        """Make way for a new connection, the one of number `count`; return False if it must be refused."""
        if count <= self._most:
            return True
        if not self._logged:
            self._logged = True
            text = (
                "%d connections are open, as many as the limit of file descriptors allows: idle ones are closed, and "
                "new ones may get 503; raise the limit (ulimit -n, LimitNOFILE= of systemd, ulimits of the container)"
            )
            _logger.warning(text, count - 1)
        oldest = next(iter(self._evictable), None)
        if oldest is None:
            return False
        del self._evictable[oldest]
        oldest.evict()
        return True

    def mark_evictable(self, connection: Evictable) -> None:
        """Note that this connection may be ended from now on, if that is not noted yet."""
        self._evictable.setdefault(connection)

    def keep(self, connection: Evictable) -> None:
        """Note that this connection must not be ended, or has ended."""
        self._evictable.pop(connection, None)

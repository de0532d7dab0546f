"""The sockets on which the service listens.

They are bound before anything else is started, so that an address that cannot be used stops the start with one line.
They take connections only once the application has started.
"""

import errno
import socket
from typing import Final

from handlers.settings import SettingsError

__all__ = ["AddressInUse", "bind"]

_IN_USE: Final = (errno.EADDRINUSE,)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM)


class AddressInUse(Exception):
    """Another process listens on the address; the text is one line."""


def bind(host: str, port: int, variable: str = "PORT") -> list[socket.socket]:
    """Return one bound socket for each address of `host`; "::" stands for all addresses, IPv4 ones too.

    With port 0 all sockets get the same free port. Raises SettingsError if the host or the port, which is that of
    `variable`, cannot be used here, and AddressInUse.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise _unusable(host, error) from None
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            if family in (socket.AF_INET, socket.AF_INET6):
                chosen = sockets[0].getsockname()[1] if sockets and not port else port
                sockets.append(_bound(family, (address[0], chosen, *address[2:])))
    except OSError as error:
        for bound in sockets:
            bound.close()
        if error.errno in _IN_USE:
            raise AddressInUse(f"cannot listen on {host} port {port}: another process does") from None
        if error.errno in _FORBIDDEN:
            denied = f"{variable}={port}: listening on this port is not permitted; choose one over 1023"
            raise SettingsError(denied) from None
        raise _unusable(host, error) from None
    return sockets


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        bound.bind(address)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def _unusable(host: str, error: Exception) -> SettingsError:
    shown = host if host.isprintable() else repr(host)
    reason = getattr(error, "strerror", None) or "not a host name"
    return SettingsError(
        f"HOST={shown}: cannot be listened on ({reason}); must be an address of this machine, such as 127.0.0.1, "
        "or 0.0.0.0 or :: for all of them"
    )

"""Rules for web pages: which origins may use the service, and which host names it answers to.

A browser sends the page's `Origin` with each WebSocket upgrade, with each POST and with each request to another origin.
Without these rules every page that a user opens could publish and listen wherever the user's browser can connect.

The `Host` is checked against DNS rebinding: a page that resolves its own name to 127.0.0.1 has the same origin as a
service on loopback, as far as the browser knows. A service that listens on loopback only and asks for no credentials
therefore answers only to loopback names and to the hosts of `ALLOWED_ORIGINS`.

This module decides; `handlers/cors.py` answers.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final, NamedTuple

__all__ = ["ANY_ORIGIN", "Access", "OriginRules", "host_of", "is_loopback", "normalized", "only_loopback"]

ANY_ORIGIN: Final = "*"
_NULL: Final = "null"
_WILDCARD: Final = "*."
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# No domain name is longer than 253 characters and a final dot. What is longer is repeated in no answer and no log line.
_HOST: Final = r"[a-z0-9_.-]{1,254}|\[[0-9a-f:.]{2,45}\]"
_ORIGIN: Final = re.compile(rf"([a-z][a-z0-9+.-]{{0,31}})://((?:\*\.)?(?:{_HOST}))(?::([0-9]{{1,5}}))?", re.IGNORECASE)
_AUTHORITY: Final = re.compile(rf"({_HOST})(?::[0-9]*)?", re.IGNORECASE)
_LOOPBACK: Final = ipaddress.ip_network("127.0.0.0/8")


class Access(Enum):
    """The access of a page of one origin."""

    REFUSED = auto()
    SERVED = auto()
    """Its requests are answered without CORS headers, so a page of another origin cannot read the answer."""
    READABLE = auto()
    """Its requests are answered, and the page may read the answer."""


class _Parts(NamedTuple):
    """An origin with scheme and host in lower case; `port` is None if it is the scheme's default."""

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}" + ("" if self.port is None else f":{self.port}")


def normalized(text: str) -> str:
    """Return an item of `ALLOWED_ORIGINS` in lower case and without a default port; raises ValueError."""
    if text == ANY_ORIGIN or text.lower() == _NULL:
        return text.lower()
    parts = _split(text)
    if parts is None:
        raise ValueError(
            "must be comma-separated origins, each scheme://host or scheme://host:port without a path "
            "(https://*.example.org for subdomains), or null, or * for any origin"
        )
    return str(parts)


class OriginRules:
    """The rules of one configuration.

    Args:
        allowed: the items of `ALLOWED_ORIGINS`.
        credentials: True if keys or tokens are configured.
        loopback: True if the service listens on loopback only.
    """

    def __init__(self, allowed: Iterable[str], *, credentials: bool, loopback: bool) -> None:
        items = {normalized(item) for item in allowed}
        self.any_origin = ANY_ORIGIN in items
        self._default = not items
        self._credentials = credentials
        self._check_host = loopback and not credentials and not self.any_origin
        self._exact = items
        listed = [parts for parts in map(_split, items) if parts is not None]
        self._wildcards = [parts for parts in listed if parts.host.startswith(_WILDCARD)]
        self._hosts = {parts.host for parts in listed}
        # Nearly all requests name the same host, and comparing it with the rules costs more than the rest of the check.
        self._answered: str | None = None

    def refuses_host(self, authority: str | None) -> bool:
        """Return True if a request with this `Host` gets no answer; one without a `Host` is not from a browser."""
        if not self._check_host or authority is None or authority == self._answered:
            return False
        host = host_of(authority)
        answered = host is not None and (
            is_loopback(host)
            or host in self._hosts
            or any(_is_subdomain(host, wildcard.host) for wildcard in self._wildcards)
        )
        if answered:
            self._answered = authority
        return not answered

    def access(self, origin: str, authority: str | None) -> Access:
        """Return what a page of `origin` may do on the host that its request names."""
        if self.any_origin:
            return Access.READABLE
        if self._default and self._credentials:
            return Access.SERVED
        parts = _split(origin)
        if parts is not None and parts.host.startswith(_WILDCARD):  # no page has such an origin
            return Access.REFUSED
        if self._default:
            allowed = parts is not None and _is_own(parts.host, authority)
        else:
            allowed = origin in self._exact if parts is None else self._is_listed(parts)
        return Access.READABLE if allowed else Access.REFUSED

    def _is_listed(self, parts: _Parts) -> bool:
        return str(parts) in self._exact or any(
            (parts.scheme, parts.port) == (wildcard.scheme, wildcard.port) and _is_subdomain(parts.host, wildcard.host)
            for wildcard in self._wildcards
        )


def host_of(authority: str) -> str | None:
    """Return the host of a `Host` header in lower case, without port and final dot; None if it is not valid."""
    found = _AUTHORITY.fullmatch(authority.strip())
    return found[1].lower().removesuffix(".") if found else None


def only_loopback(host: str) -> bool:
    """Return True if a service that listens on `host` can be reached over loopback only."""
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return all(is_loopback(address) for address in addresses)


def _split(text: str) -> _Parts | None:
    """Return the parts of an origin; None if it is not one with a host, as "null" is not."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return None
    scheme, host = found[1].lower(), found[2].lower()
    port = None if found[3] is None else int(found[3])
    if port is not None and port > 65535:
        return None
    return _Parts(scheme, host, None if port == _DEFAULT_PORTS.get(scheme) else port)


def _is_own(host: str, authority: str | None) -> bool:
    """Return True for a page of the service's own host, and for one of a loopback host on a loopback host."""
    own = None if authority is None else host_of(authority)
    if own is None:
        return False
    host = host.removesuffix(".")
    return host == own or (is_loopback(host) and is_loopback(own))


def is_loopback(host: str) -> bool:
    """Return True for a name or an address, with or without brackets, that stands for this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return address in _LOOPBACK if address.version == 4 else address == ipaddress.IPv6Address("::1")


def _is_subdomain(host: str, wildcard: str) -> bool:
    domain = wildcard.removeprefix("*")
    return host.endswith(domain) and len(host) > len(domain)

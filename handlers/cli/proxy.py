"""The proxy that `tail` and `demo` use, from the usual environment variables.

For http:// and ws:// it is `http_proxy`, for https:// and wss:// it is `https_proxy`, each in lower or upper case, and
`all_proxy` if that one is not set. `no_proxy` lists hosts that are reached directly, and loopback always is.
"""

import base64
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed lacks it

from handlers.origins import is_loopback
from handlers.settings import SettingsError

__all__ = ["Proxy", "ProxyUnusable", "proxy_for"]

_SECURE: Final = ("https", "wss")


class ProxyUnusable(SettingsError):
    """A variable that names a proxy that cannot be used."""


class Proxy(NamedTuple):
    """An HTTP proxy: its URL, with credentials if it needs them, and the variable that names it."""

    url: str
    variable: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80

    @property
    def headers(self) -> dict[str, str]:
        """The header with the credentials for the proxy, if the URL has any."""
        parts = urlsplit(self.url)
        if parts.username is None:
            return {}
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}

    def __str__(self) -> str:
        host, port = self.address
        return f"the proxy {host}:{port} of {self.variable}"


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a URL, None for a direct connection.

    Raises ProxyUnusable for a SOCKS proxy, or one that is reached by TLS: neither is supported.
    """
    target = urlsplit(url)
    host = target.hostname or ""
    if is_loopback(host):
        return None
    lower = {name.lower(): (name, value.strip()) for name, value in sorted(environ.items()) if value.strip()}
    excluded = lower.get("no_proxy", ("", ""))[1]
    if proxy_bypass_environment(host, {"no": excluded}):
        return None
    own = "https_proxy" if target.scheme in _SECURE else "http_proxy"
    for name in (own, "all_proxy", "socks_proxy"):
        if name in lower:
            variable, text = lower[name]
            return _checked(variable, text)
    return None


def _checked(variable: str, text: str) -> Proxy:
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:
        usable = False
    if not usable or variable.lower() == "socks_proxy":
        shown = text.rpartition("@")[2]
        shown = shown if shown.isprintable() else repr(shown)
        raise ProxyUnusable(
            f"{variable}: the proxy {shown} cannot be used; set http_proxy or https_proxy to an HTTP proxy like "
            "http://proxy.example.org:3128, or list the service's host in no_proxy"
        )
    return Proxy(url, variable)

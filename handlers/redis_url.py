"""The URL of Redis: a check of its parts at the start, and its form in logs, without credentials.

redis-py ignores parts that it does not understand, or fails on them only when it connects: `redis://host/cache` would
mean database 0, and a password with `#` would lead to another host.
"""

import os
import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

__all__ = ["check_redis_url", "mask_redis_url"]

_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_MASK: Final = "***"
_EXAMPLES: Final = "must be a URL like redis://host:6379/0, rediss://host:6379/0 or unix:///path/to/socket"
_ENCODED: Final = "write the characters # / ? @ and % of a user or password as %23 %2F %3F %40 and %25"

_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS: Final = ("db", "username", "password")
# The options of TLS, each with its allowed values, or an empty tuple for the path of a file.
_TLS_OPTIONS: Final = {
    **dict.fromkeys(_FILES, ()),
    "ssl_cert_reqs": ("required", "none"),
    "ssl_check_hostname": ("true", "false", "True", "False"),
}


def check_redis_url(text: str) -> str:
    """Return a URL of which every part is understood; raise ValueError with what is allowed."""
    encoded = f"; {_ENCODED}" if "@" in text else ""
    try:
        url = urlsplit(text)
        usable = url.port != 0 and not re.search(r"[,\s]", url.hostname or "")
    except ValueError:  # the error may quote the password
        raise ValueError(_EXAMPLES + encoded) from None
    if url.scheme == "unix":
        usable = not url.hostname and url.port is None and url.path not in ("", "/")
    # urlsplit drops tabs and line breaks; an @ in the query would be that of credentials with a ?.
    if not (usable and text.startswith(_SCHEMES)) or re.search(r"[#\t\r\n]", text) or "@" in url.query:
        raise ValueError(_EXAMPLES + encoded)
    if url.scheme != "unix" and not re.fullmatch(r"(/[0-9]{0,9})?", url.path):
        raise ValueError(f"the database must be a number, as in {url.scheme}://host:6379/0{encoded}")
    _check_options(url.scheme, url.query, path_names_database=url.scheme != "unix" and len(url.path) > 1)
    return text


def _check_options(scheme: str, query: str, *, path_names_database: bool) -> None:
    allowed = (*_OPTIONS, *(_TLS_OPTIONS if scheme == "rediss" else ()))
    options = parse_qsl(query, keep_blank_values=True)
    for name, value in options:
        if name not in allowed:
            shown = f"the option {name}" if re.fullmatch(r"[a-z_]{1,40}", name) else "an option"
            hint = "; only rediss:// takes it" if name in _TLS_OPTIONS else ""
            raise ValueError(f"{shown} is not understood{hint}; allowed after ? are {', '.join(allowed)}")
        if [other for other, _ in options].count(name) > 1 or (name == "db" and path_names_database):
            raise ValueError(f"{name} is given twice")
        if name == "db" and not re.fullmatch(r"[0-9]{1,9}", value):
            raise ValueError("the option db must be a number")
        if name in _FILES and not (os.path.isfile(value) and os.access(value, os.R_OK)):
            raise ValueError(f"the option {name} must be the path of a file that can be read")
        choices = _TLS_OPTIONS.get(name, ())
        if choices and value not in choices:
            raise ValueError(f"the option {name} must be one of {', '.join(choices)}")


def mask_redis_url(text: str) -> str:
    """Return a URL with its credentials and its query masked, whether it is valid or not."""
    # A URL parser would put a password that contains / ? or # into another part, unmasked.
    scheme, mark, rest = text.partition("://") if re.match(r"[a-zA-Z+]+://", text) else ("", "", text)
    credentials, at, rest = rest.rpartition("@")
    rest, query, _ = rest.partition("?")
    if not rest.startswith("["):  # not an IPv6 address: only a port may follow a colon
        rest = re.sub(r":(?![0-9]+(/|$)).*", f":{_MASK}", rest, flags=re.DOTALL)
    return scheme + mark + (_MASK if credentials else "") + at + rest + (query and query + _MASK)

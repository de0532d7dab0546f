"""Authentication: API keys for REST, API keys and the token for the WebSocket.

These are pure functions of what a request carries. A secret is compared in constant time with every configured secret,
so that the response time reveals nothing about it.
"""

import base64
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from litestar.exceptions import NotAuthorizedException

from handlers.settings import Settings

__all__ = ["Verdict", "encoded", "listener_credentials", "require_api_key"]

_SUBPROTOCOL: Final = "api-key."
_ENCODED_SUBPROTOCOL: Final = "api-key-b64."

RawHeaders = Iterable[tuple[bytes, bytes]]


class Verdict(NamedTuple):
    """The result of checking the credentials of a client that listens.

    `allowed` is True if they are valid. `subprotocol` is the one to accept, for refused clients too: without it a
    browser drops the connection before it can read the close code.
    """

    allowed: bool
    subprotocol: str | None


def require_api_key(headers: RawHeaders, keys: Sequence[bytes]) -> None:
    """Require one of `keys`, as `Authorization: Bearer` or `X-API-Key`; do nothing if there are no keys.

    Raises NotAuthorizedException. This is not a Litestar guard because guards cost half as much as an empty route.
    """
    if keys:
        bearer, api_key = _presented(headers)
        if not _any_known(bearer + api_key, keys):
            raise NotAuthorizedException(
                "A valid API key is needed: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
            )


def listener_credentials(
    settings: Settings, *, query: Mapping[str, str], headers: RawHeaders, subprotocols: Iterable[str] = ()
) -> Verdict:
    """Check the credentials of a client that listens; `headers` are those of the ASGI scope, with names in lower case.

    A client may send an API key as the query parameter `api_key`, as `Authorization: Bearer`, as `X-API-Key` or as the
    subprotocol `api-key.KEY` or `api-key-b64.` with the key's base64url without `=`, and the token as the query
    parameter `token` or as `Authorization: Bearer`. If the settings have both, it needs both.
    """
    bearer, keys = _presented(headers)
    offered = [name for name in subprotocols if name.startswith((_SUBPROTOCOL, _ENCODED_SUBPROTOCOL))]
    keys += [_key_in(name) for name in offered]
    keys += [query["api_key"].encode()] if "api_key" in query else []
    tokens = bearer + ([query["token"].encode()] if "token" in query else [])

    known = encoded(settings.api_keys)
    key_ok = not known or _any_known(bearer + keys, known)
    token_ok = not settings.websocket_token or _any_known(tokens, encoded([settings.websocket_token]))
    return Verdict(key_ok and token_ok, offered[0] if offered else None)


def encoded(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """Return secrets as UTF-8, the form in which they arrive; `hmac.compare_digest` takes only ASCII as text."""
    return tuple(secret.encode() for secret in secrets)


def _key_in(subprotocol: str) -> bytes:
    """Return the key in a subprotocol; an encoded one that is not base64url without `=` gives "", which is no key."""
    if subprotocol.startswith(_SUBPROTOCOL):
        return subprotocol.removeprefix(_SUBPROTOCOL).encode()
    text = subprotocol.removeprefix(_ENCODED_SUBPROTOCOL)
    if not re.fullmatch("[A-Za-z0-9_-]*", text) or len(text) % 4 == 1:
        return b""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _presented(headers: RawHeaders) -> tuple[list[bytes], list[bytes]]:
    """Return the values of `Authorization: Bearer` headers, and those of `X-API-Key` headers."""
    bearer, api_key = [], []
    for name, value in headers:
        if name == b"x-api-key":
            api_key.append(value.strip())
        elif name == b"authorization":
            scheme, _, credentials = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                bearer.append(credentials.strip())
    return bearer, api_key


def _any_known(candidates: Iterable[bytes], known: Sequence[bytes]) -> bool:
    """Compare every candidate with every known secret, even after a match."""
    found = False
    for candidate in candidates:
        for secret in known:
            found |= hmac.compare_digest(candidate, secret)
    return found

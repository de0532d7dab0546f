"""Who may come in: API keys for REST, keys and the token for the WebSocket, and which origins may upgrade.

Pure questions about what a request carries, answered without I/O. A secret is compared in constant time with every
secret that is in force, so that the time an answer takes tells nothing.
Not here: how a WebSocket is refused (websocket.py), the shape of a 401 (problems.py).
"""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from litestar.exceptions import NotAuthorizedException

from handlers.settings import Settings

__all__ = ["Verdict", "encoded", "origin_allowed", "require_api_key", "websocket_credentials_ok"]

_SUBPROTOCOL: Final = "api-key."

RawHeaders = Iterable[tuple[bytes, bytes]]


class Verdict(NamedTuple):
    """Whether a WebSocket client may come in, and the subprotocol to answer with.

    `subprotocol` is echoed to refused clients too: without the echo a browser drops the connection before it can read
    the close code.
    """

    allowed: bool
    subprotocol: str | None


def require_api_key(headers: RawHeaders, keys: Sequence[bytes]) -> None:
    """Ask for one of `keys`, as `Authorization: Bearer` or `X-API-Key`; no keys, no question.

    Raises NotAuthorizedException. A function to call and no Litestar guard: those cost half an empty route.
    """
    if keys:
        bearer, api_key = _presented(headers)
        if not _any_known(bearer + api_key, keys):
            raise NotAuthorizedException(
                "A valid API key is needed: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
            )


def websocket_credentials_ok(
    settings: Settings, *, query: Mapping[str, str], headers: RawHeaders, subprotocols: Iterable[str]
) -> Verdict:
    """Judge the credentials of an upgrade; `headers` are the raw ones of the ASGI scope, names in lower case.

    An API key may come as the query parameter `api_key`, as `Authorization: Bearer`, `X-API-Key` or the subprotocol
    `api-key.KEY`; the token as the query parameter `token` or as `Authorization: Bearer`. With both set a client needs
    both, and the bearer may be either.
    """
    bearer, keys = _presented(headers)
    offered = [name for name in subprotocols if name.startswith(_SUBPROTOCOL)]
    keys += [name.removeprefix(_SUBPROTOCOL).encode() for name in offered]
    keys += [query["api_key"].encode()] if "api_key" in query else []
    tokens = bearer + ([query["token"].encode()] if "token" in query else [])

    known = encoded(settings.api_keys)
    key_ok = not known or _any_known(bearer + keys, known)
    token_ok = not settings.websocket_token or _any_known(tokens, encoded([settings.websocket_token]))
    return Verdict(key_ok and token_ok, offered[0] if offered else None)


def encoded(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """Give secrets as the bytes that arrive; text of any script can be compared that way."""
    return tuple(secret.encode() for secret in secrets)


def origin_allowed(settings: Settings, origin: str | None) -> bool:
    """Tell whether an upgrade from `origin` is welcome: any if none are configured, and any client that sends none."""
    if not settings.allowed_origins or origin is None:
        return True
    return origin.lower() in (allowed.lower().rstrip("/") for allowed in settings.allowed_origins)


def _presented(headers: RawHeaders) -> tuple[list[bytes], list[bytes]]:
    """Collect what the headers carry: bearer values, X-API-Key values."""
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
    """Compare every candidate with every known secret, whatever was found before."""
    found = False
    for candidate in candidates:
        for secret in known:
            found |= hmac.compare_digest(candidate, secret)
    return found

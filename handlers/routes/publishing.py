"""Turns a typed function into a publish route.

The function says which message it takes and which broadcast method it calls; `publishes` adds what all publish routes
share: reading headers and body, both forms of a body, and the answer. The answer is ready bytes and the request is read
without Litestar's parameter injection, because these routes are every publisher's hot path.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, get_args, get_type_hints

import msgspec
from litestar import Request
from litestar.di import NamedDependency
from litestar.params import SkipValidation
from litestar.types import ASGIApp, Receive, Scope, Send

from handlers.routes.request import read_publish
from kernel import EventBroadcaster, Message, Receipt, ReplayedReceipt
from kernel.messages import MESSAGE_TYPES, decode_batch, decode_message

__all__ = ["publishes"]

_encode: Final = msgspec.json.Encoder().encode

Published: TypeAlias = Receipt | list[Receipt]
# What Litestar injects is not validated: that would cost more than the rest of the injection.
_Broadcaster: TypeAlias = NamedDependency[SkipValidation[EventBroadcaster]]
Handler: TypeAlias = Callable[[Request[Any, Any, Any], EventBroadcaster], Awaitable[ASGIApp]]


class _Accepted:
    """The 202 as ready bytes."""

    __slots__ = ("_body", "_headers")

    def __init__(self, published: Published, *, closing: bool) -> None:
        if isinstance(published, list):
            body, first = _encode({"receipts": published}), published[0]
        else:
            body, first = _encode(published), published
        self._body = body
        self._headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if isinstance(first, ReplayedReceipt):
            self._headers.append((b"idempotent-replayed", b"true"))
        if closing:
            self._headers.append((b"connection", b"close"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 202, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


def publishes(function: Callable[..., Awaitable[Published]]) -> Handler:
    """Make a route handler of `function(broadcaster, message, options)`, which returns the receipt.

    The annotation of its second parameter says what the body is: one message type, a union of them (then the last part
    of the path tells which: `alert_created` at `…/created`), or `list[Message]` for a batch.
    """
    decode = _decoder(function)

    async def handler(request: Request[Any, Any, Any], broadcaster: _Broadcaster) -> ASGIApp:
        body, options = await read_publish(request)
        published = await function(broadcaster, decode(body, request.scope["path"]), options)
        return _Accepted(published, closing=broadcaster.draining)

    handler.__name__ = function.__name__
    handler.__doc__ = function.__doc__
    return handler


def _decoder(function: Callable[..., Any]) -> Callable[[bytes, str], Any]:
    hints = get_type_hints(function)
    message = hints[function.__code__.co_varnames[1]]
    if message == list[Message]:
        return lambda body, _: decode_batch(body)
    kinds = get_args(message) or (message,)
    wire_types = [name for name, kind in MESSAGE_TYPES.items() if kind in kinds]
    if len(wire_types) == 1:
        return lambda body, _: decode_message(wire_types[0], body)
    by_path = {wire_type.rpartition("_")[2]: wire_type for wire_type in wire_types}
    return lambda body, path: decode_message(by_path[path.rpartition("/")[2]], body)

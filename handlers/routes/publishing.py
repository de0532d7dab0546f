"""Publish routes: make a Litestar route of a typed function that calls one broadcast method.

The function takes the broadcaster, a decoded message and the publish options, and returns the receipt. The decorators
here add what all publish routes share: they read the request, decode its body, call the function, and answer 202 with
the receipt.

These routes are the hot path of every producer, so only the broadcaster is injected by Litestar: if the message and the
options were dependencies too, a request would take more than four times the CPU. For the same reason the answer is
prepared as bytes.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, get_type_hints

import msgspec
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import SkipValidation
from litestar.types import ASGIApp, Receive, Scope, Send

from handlers.routes.dependencies import Broadcaster
from handlers.routes.publish_request import BODY_BUDGET, BodyShare, read_publish
from kernel import EventBroadcaster, Message, PublishOptions, Receipt, ReplayedReceipt
from kernel.messages import decode_batch, decode_message

__all__ = ["BodyType", "body_type", "publish_route", "publish_routes"]

MessageT = TypeVar("MessageT")
Receipts: TypeAlias = Receipt | list[Receipt]
BodyType: TypeAlias = type[Message] | type[list[Message]]
PublishFunction: TypeAlias = Callable[[EventBroadcaster, MessageT, PublishOptions], Awaitable[Receipts]]

_BODY_TYPE: Final = "body_type"
_encode: Final = msgspec.json.Encoder().encode


def publish_route(path: str, *, tags: list[str]) -> Callable[[PublishFunction[MessageT]], HTTPRouteHandler]:
    """Make a POST route of a publish function.

    The annotation of the function's second parameter says what the body is: a message type (its bare data, or its
    envelope), or `list[Message]` for a batch.
    """

    def decorate(function: PublishFunction[MessageT]) -> HTTPRouteHandler:
        _, body, *_ = get_type_hints(function).values()
        return _route(function, path, body, tags)

    return decorate


def publish_routes(
    bodies: Mapping[str, type[Message]], *, tags: list[str]
) -> Callable[[PublishFunction[MessageT]], list[HTTPRouteHandler]]:
    """Make several POST routes of one publish function; `bodies` maps each path to the message type of its body."""

    def decorate(function: PublishFunction[MessageT]) -> list[HTTPRouteHandler]:
        return [_route(function, path, body, tags) for path, body in bodies.items()]

    return decorate


def body_type(route: HTTPRouteHandler) -> BodyType:
    """Return what a publish route takes: a message type, or `list[Message]`."""
    body: BodyType = route.opt[_BODY_TYPE]
    return body


def _route(function: PublishFunction[Any], path: str, body: BodyType, tags: list[str]) -> HTTPRouteHandler:
    decode = _decoder(body)

    async def handler(request: SkipValidation[Request[Any, Any, Any]], broadcaster: Broadcaster) -> ASGIApp:
        share = BodyShare(request.scope["route_handler"].opt[BODY_BUDGET])
        try:
            content, options = await read_publish(request, share)
            message = decode(content, broadcaster.event_max_bytes)
            del content  # it may be large, and many publishes may wait for Redis
            receipts = await function(broadcaster, message, options)
        finally:
            share.release()
        return _Accepted(receipts, closing=broadcaster.draining)

    handler.__name__ = function.__name__
    handler.__doc__ = function.__doc__
    return post(path, tags=tags, opt={_BODY_TYPE: body})(handler)


def _decoder(body: BodyType) -> Callable[[bytes, int], Any]:
    if isinstance(body, type) and issubclass(body, msgspec.Struct):
        return partial(decode_message, str(body.__struct_config__.tag))
    return decode_batch


class _Accepted:
    """The 202 answer to a publish, prepared as bytes; `closing` tells the client to close the connection."""

    __slots__ = ("_body", "_headers")

    def __init__(self, receipts: Receipts, *, closing: bool) -> None:
        if isinstance(receipts, list):
            body, first = _encode({"receipts": receipts}), receipts[0]
        else:
            body, first = _encode(receipts), receipts
        self._body = body
        self._headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if isinstance(first, ReplayedReceipt):
            self._headers.append((b"idempotent-replayed", b"true"))
        if closing:
            self._headers.append((b"connection", b"close"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 202, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})

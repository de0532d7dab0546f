"""Publish routes that are built from functions."""

from typing import Any

import pytest

from handlers.routes.broadcast import PUBLISH_ROUTES
from handlers.routes.publishing import body_type, publish_route, publish_routes
from kernel import AlertCreatedMessage, AlertUpdatedMessage, EventMessage, Message, PublishOptions, Receipt
from kernel.messages import MESSAGE_TYPES
from tests.handlers.http_app import ROUTES


async def publish_event(broadcaster: Any, message: EventMessage, options: PublishOptions) -> Receipt:
    """Publish an event."""
    return await broadcaster.broadcast_event(message.data, options=options)


async def publish_batch(broadcaster: Any, messages: list[Message], options: PublishOptions) -> list[Receipt]:
    """Publish a batch."""
    return await broadcaster.broadcast_batch(messages, options=options)


async def publish_alert(
    broadcaster: Any, message: AlertCreatedMessage | AlertUpdatedMessage, options: PublishOptions
) -> Receipt:
    """Publish an alert."""
    return await broadcaster.broadcast_alert(message.data, "created", options=options)


@pytest.mark.parametrize(("function", "body"), [(publish_event, EventMessage), (publish_batch, list[Message])])
def test_the_signature_gives_the_body(function: Any, body: Any) -> None:
    """The type of the function's second parameter is the type of the body."""
    route = publish_route("/path", tags=["tag"])(function)

    assert (route.paths, route.http_methods) == ({"/path"}, {"POST"})
    assert body_type(route) == body
    assert route.fn.__doc__ == function.__doc__


def test_several_routes_of_one_function() -> None:
    """A function can have several routes, each with its own message type."""
    bodies: dict[str, type[Message]] = {"/created": AlertCreatedMessage, "/updated": AlertUpdatedMessage}

    routes = publish_routes(bodies, tags=["tag"])(publish_alert)

    assert {path: body_type(route) for route in routes for path in route.paths} == bodies


def test_the_routes_of_the_service() -> None:
    """Each message type has one publish route, and there is one for batches, in the documented order."""
    bodies = {path: body_type(route) for route in PUBLISH_ROUTES for path in route.paths}

    assert bodies.pop("/broadcast/batch") == list[Message]
    assert list(bodies.items()) == [(path, MESSAGE_TYPES[wire_type]) for wire_type, path in ROUTES.items()]

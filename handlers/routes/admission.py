"""The checks of the HTTP routes for clients that listen, before anything is read or written for them."""

from collections.abc import Mapping
from typing import Any

from litestar import Request
from litestar.exceptions import NotAuthorizedException, ServiceUnavailableException

from handlers.auth import listener_credentials
from handlers.settings import Settings
from kernel import EventBroadcaster

__all__ = ["admit"]


def admit(request: Request[Any, Any, Any], broadcaster: EventBroadcaster, settings: Settings) -> Mapping[str, str]:
    """Check that a client may listen, and return the parameters of the query, the last one of each name.

    Raises ServiceUnavailableException while the replica drains or is full, and NotAuthorizedException.
    """
    if broadcaster.draining:
        raise ServiceUnavailableException("This replica is stopping: connect again, and another one answers.")
    cap = settings.websocket_max_connections
    if cap and broadcaster.connections >= cap:
        raise ServiceUnavailableException("This replica has as many connections as it may have: try again later.")
    query: Mapping[str, str] = {name: values[-1] for name, values in request.query_params.dict().items()}
    if not listener_credentials(settings, query=query, headers=request.scope["headers"]).allowed:
        raise NotAuthorizedException(
            "Valid credentials are needed: a key as 'Authorization: Bearer', 'X-API-Key' or the parameter api_key, and "
            "where WEBSOCKET_TOKEN is set the token as the parameter token."
        )
    return query

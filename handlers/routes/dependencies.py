"""The dependency that Litestar injects into route handlers: the application's broadcaster."""

from typing import Final, TypeAlias

from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation

from kernel import EventBroadcaster, get_broadcaster

__all__ = ["BROADCASTER", "Broadcaster", "broadcaster_provider"]

BROADCASTER: Final = "broadcaster"
"""The name of the parameter into which the broadcaster is injected."""

Broadcaster: TypeAlias = NamedDependency[SkipValidation[EventBroadcaster]]
"""The type of that parameter.

Litestar would otherwise check the broadcaster's type for each request, which costs more than the rest of the injection.
"""


def broadcaster_provider(state: State) -> Provide:
    """Return the dependency that gives every route the application's one broadcaster.

    It is cached and takes no parameters: if it took the state as a parameter, Litestar would copy the state for each
    request.
    """

    def provide_broadcaster() -> EventBroadcaster:
        return get_broadcaster(state)

    return Provide(provide_broadcaster, use_cache=True, sync_to_thread=False)

"""The injected broadcaster."""

from litestar import Litestar, get
from litestar.datastructures import State
from litestar.testing import AsyncTestClient

from handlers.routes.dependencies import BROADCASTER, Broadcaster, broadcaster_provider
from tests.fakes import FakeBroadcaster


@get("/epoch", sync_to_thread=False)
def epoch(broadcaster: Broadcaster) -> str:
    """Return the epoch of the injected broadcaster."""
    return broadcaster.epoch


def app_of(broadcaster: FakeBroadcaster) -> Litestar:
    """Return an application with this broadcaster."""
    state = State({"broadcaster": broadcaster})
    return Litestar([epoch], dependencies={BROADCASTER: broadcaster_provider(state)}, openapi_config=None)


async def test_each_application_has_its_broadcaster() -> None:
    """A route gets the broadcaster in the state of its application, whose type is not checked."""
    broadcasters = [FakeBroadcaster(), FakeBroadcaster()]
    for number, broadcaster in enumerate(broadcasters):
        broadcaster.epoch = f"epoch-{number}"

    for broadcaster in broadcasters:
        async with AsyncTestClient(app_of(broadcaster)) as client:
            for _ in range(2):
                assert (await client.get("/epoch")).text == broadcaster.epoch

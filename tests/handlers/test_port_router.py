"""The choice between two applications by the port on which a request arrived."""

from typing import Any

import pytest

from handlers.port_router import PortRouter


@pytest.mark.parametrize(
    ("server", "answering"),
    [
        (("10.0.0.7", 8081), "internal"),
        (("10.0.0.7", 8000), "public"),
        (("/run/socket", None), "public"),
        (None, "public"),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_the_port_of_the_socket_decides(kind: str, server: Any, answering: str) -> None:
    """A request on the internal port goes to the internal application, and every other one to the public one."""
    answered: list[tuple[str, Any]] = []

    def app(name: str) -> Any:
        async def answer(scope: Any, *_: object) -> None:
            answered.append((name, scope))

        return answer

    scope = {"type": kind, "path": "/health", "headers": [(b"host", b"10.0.0.7:8081")], "server": server}
    await PortRouter(app("public"), port=8081, internal=app("internal"))(scope, None, None)  # type: ignore[arg-type]
    assert answered == [(answering, scope)]

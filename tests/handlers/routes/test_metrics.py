"""The route of the metrics."""

import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient

from handlers.routes.metrics import metrics_route


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ({"accept": "application/openmetrics-text"}, "application/openmetrics-text"),
        ({}, "*/*"),
        ({"accept": "application/openmetrics-text" + "," * 1024}, ""),  # longer than any client's
    ],
)
async def test_metrics(sent: dict[str, str], seen: str) -> None:
    """The text and its content type depend on the Accept header, are sent unchanged, and are not cached."""
    accepted: list[str] = []

    def expose(accept: str) -> tuple[bytes, str]:
        accepted.append(accept)
        return b"metric 1\n", "text/plain; version=0.0.4; charset=utf-8"

    async with AsyncTestClient(Litestar([metrics_route(expose)], openapi_config=None)) as client:
        answer = await client.get("/metrics", headers=sent)
        head = await client.head("/metrics")

    assert (answer.status_code, answer.content) == (200, b"metric 1\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert accepted[0] == seen
    assert (head.status_code, head.content) == (200, b"")

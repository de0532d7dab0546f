"""The path `/`: nothing is there, but `OPTIONS /`, the default health check of HAProxy, is answered 204."""

from litestar import get
from litestar.exceptions import NotFoundException

__all__ = ["root"]


@get("/", include_in_schema=False, sync_to_thread=False)
def root() -> None:
    """Answer 404; the route exists because Litestar answers OPTIONS for the paths that it knows."""
    raise NotFoundException

"""Runs the kernel's tests on virtual time, but for those that talk to a real server."""

import asyncio
from collections.abc import Callable

import pytest

from tests.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Choose the event loop of an asynchronous test; the marker `real_time` chooses one that waits."""
    if item.get_closest_marker("real_time") is not None:
        return {"real_time": asyncio.new_event_loop}
    return {"virtual_time": VirtualTimeLoop}

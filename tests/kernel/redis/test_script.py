"""Scripts: their text, and the name by which Redis knows it."""

import pytest
import redis.asyncio as redis

from kernel.redis.script import Script

pytestmark = pytest.mark.real_time


@pytest.mark.parametrize("file", ["publish.lua", "read.lua"])
async def test_redis_gives_it_the_same_name(redis_url: str, file: str) -> None:
    """Redis accepts each script and names it as expected, so it can be called without being sent."""
    script = Script(file)
    async with redis.Redis.from_url(redis_url) as client:
        await client.script_load(script.text)
        assert await client.script_exists(script.sha) == [True]

"""Hostile publishes: for how long one request that is slow to decode blocks the event loop."""

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.rows.held import Probed
from tests.benchmarks.subjects import OURS, request

__all__ = ["DEFAULT", "ROW", "hostile_requests", "measure"]

DEFAULT = "64 KiB"
_CAMERA = b'"event_type":"camera.online","camera_id":"c","camera_name":"n","status":"online","timestamp":"noon"'
_FIELDS = 100_000


def hostile_requests() -> dict[str, bytes]:
    """Return the requests by case; each is a valid publish."""
    numbers = {DEFAULT: 64 * 1024, "1 MiB": 1024 * 1024}
    found = {
        f"numbers 1e308, {case}": b'{%b,"details":{"a":[%b1]}}' % (_CAMERA, b"1e308," * ((size - 400) // 6))
        for case, size in numbers.items()
    }
    unknown = b",".join(b'"%d":1' % number for number in range(_FIELDS))
    found[f"{_FIELDS:,} unknown fields"] = b"{%b,%b}" % (_CAMERA, unknown)
    return {case: request("/broadcast/camera-status", body) for case, body in found.items()}


def run(bench: Bench) -> None:
    """Publish each request once a round, with `EVENT_MAX_BYTES` at 1 MiB."""
    with Probed(bench.redis_url, EVENT_MAX_BYTES=str(1024 * 1024), HTTP_MAX_BODY_BYTES=str(2**21)) as server:
        for case, ready in hostile_requests().items():
            measure(server, ready)
            for _ in range(bench.rounds):
                bench.results.add("hostile", case, OURS.name, {"held": measure(server, ready)})
            bench.say(f"  {case}")


def measure(server: Probed, ready: bytes) -> float:
    """Publish once; return the longest time, in milliseconds, for which the event loop was blocked."""
    server.held()
    server.load.post(ready)
    return server.held()


ROW = Row("hostile", Table("Event loop blocked by one hostile publish", (Column("held", "longest, ms", 1),)), run)

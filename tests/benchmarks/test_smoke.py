"""Correctness of the benchmarks: all clients receive all events, and tables show the values. Times are not checked."""

import asyncio
import re
from urllib.request import urlopen

import pytest
import redis

from tests.benchmarks.aims import AIMS, aims_table
from tests.benchmarks.bench import Bench
from tests.benchmarks.machine import built
from tests.benchmarks.picture import picture
from tests.benchmarks.results import Results
from tests.benchmarks.rows import ROWS, hostile, hostile_memory, hostile_messages, narrow_link
from tests.benchmarks.rows.held import Probed
from tests.benchmarks.rows.listening import held_polls, poll_request
from tests.benchmarks.rows.paced import paced
from tests.benchmarks.rows.publish import requests
from tests.benchmarks.rows.single import one_at_a_time
from tests.benchmarks.rows.tracing import ALWAYS, NONE, OFF, variants
from tests.benchmarks.subjects import OURS, RAW, SEND, STREAMS, Server, Subject, data_of, frame_of
from tests.system.redis_server import RedisServer

_CLIENTS = 20
_NEEDS_COMPILER = pytest.mark.skipif(built(SEND.source) is None, reason="no C compiler")


@pytest.mark.system
@pytest.mark.parametrize(
    "fallback", [pytest.param(False, marks=_NEEDS_COMPILER, id="C"), pytest.param(True, id="Python")]
)
def test_this_service_delivers_everything(redis_url: str, fallback: bool) -> None:
    """All events reach all clients: saturated, one by one, paced, deflated, with patterns, next to a stuck client."""
    with Server(OURS, redis_url, fallback=fallback) as server:
        server.connect(_CLIENTS - 10)
        server.connect(5, "/ws/events?events=event*,camera-{}.*")
        server.connect(5, deflate=True)
        server.connect(1, stuck=True)
        assert server.load.clients == _CLIENTS
        assert server.saturate(data_of(350), 1000)["rate"] > 0
        assert server.saturate(data_of(4096), 300)["rate"] > 0
        one = one_at_a_time(server, data_of(350), 3)
        assert 0 < one["first"] <= one["last"]

    with Server(STREAMS, redis_url, fallback=fallback) as server:
        server.connect(_CLIENTS)
        assert server.saturate(data_of(350), 1000)["rate"] > 0
        assert one_at_a_time(server, data_of(4096), 3)["bytes"] > 4000

    with Server(OURS, redis_url, fallback=fallback) as server:
        server.connect(_CLIENTS)
        latency = paced(server, rate=100, seconds=0.3)
        assert 0 < latency["p50"] <= latency["p99"] <= latency["max"] < 60e6


@pytest.mark.system
@pytest.mark.parametrize("subject", [RAW, pytest.param(SEND, marks=_NEEDS_COMPILER)], ids=lambda subject: subject.name)
def test_the_limits_deliver_everything(redis_url: str, subject: Subject) -> None:
    """The peers deliver all events as well."""
    with Server(subject, redis_url) as server:
        server.connect(_CLIENTS)
        assert server.saturate(data_of(350), 50)["rate"] > 0
        assert one_at_a_time(server, data_of(4096), 3)["bytes"] > 4000


@pytest.mark.system
def test_polls_wait_and_are_answered(redis_url: str) -> None:
    """Polls are held while their block lasts, and answered at once if they do not wait."""
    with Server(OURS, redis_url) as server:
        server.publish(data_of(350), 10)
        with held_polls(server, 5), held_polls(server, 5):
            assert requests(server, poll_request(server, wait=0, behind=5), 2, 0.05)["rate"] > 0


@pytest.mark.system
def test_tracing_is_what_it_says(redis_url: str) -> None:
    """Each variant delivers all events; only those with tracing add a traceparent; the bare service counts nothing."""
    with variants(Bench(redis_url, seconds=0.05)) as servers:
        traced = {}
        for name, server in servers.items():
            server.connect(_CLIENTS)
            assert server.saturate(data_of(350), 50)["rate"] > 0
            assert requests(server, server.one(data_of(350)), 4, 0.05)["rate"] > 0
            with redis.Redis.from_url(redis_url) as link:
                entries = link.xrevrange(f"{{{server.channel}}}:history", count=1)
            traced[name] = b"traceparent" in entries[0][1][b"event"]
            text = urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
            counted = float(re.search(r"^event_broadcaster_batches_total (\S+)$", text, re.MULTILINE)[1])  # type: ignore
            assert bool(counted) == (name != NONE)
    assert traced[ALWAYS]
    assert not traced[NONE]
    assert not traced[OFF]


@pytest.mark.system
def test_hostile_clients_are_served_and_refused(redis_url: str) -> None:
    """Hostile publishes and messages are accepted, what is over the limits is refused, and both are measured."""
    with Probed(redis_url, HTTP_REQUEST_SECONDS="1", EVENT_MAX_BYTES=str(2**20)) as server:
        for ready in hostile.hostile_requests().values():
            if len(ready) < 2**20:
                assert hostile.measure(server, ready) >= 0
        for values in (
            asyncio.run(hostile_messages.numbers(server, 1, messages=3)),
            asyncio.run(hostile_messages.subscribe(server, 1)),
            asyncio.run(hostile_messages.event(server, 2, events=1)),
        ):
            assert values["cpu"] > 0
        assert asyncio.run(hostile_memory.bombs(server, 2, 50, seconds=0.2))["memory"] < 50e6
        assert asyncio.run(hostile_memory.heads(server, 3))["status"] == 431
        assert asyncio.run(hostile_memory.target(server, 3))["status"] == 414
        assert asyncio.run(hostile_memory.halves(server, 20, 1.0))["open"] == 0


@pytest.mark.system
def test_large_events_are_kept_and_read(redis_url: str) -> None:
    """Publishes wait while Redis hangs, slow clients get what they missed, and a replica starts on a slow link."""
    with RedisServer() as own, Probed(own.url, **hostile_memory.LARGE) as server:
        values = asyncio.run(hostile_memory.frozen(server, own, 5, seconds=0.2))
        assert (values["accepted"], values["memory"] > 5e6) == (5, True)
    with hostile_memory.filled(redis_url, 8) as channel:
        with Probed(redis_url, channel=channel, **hostile_memory.LARGE) as server:
            assert asyncio.run(hostile_memory.resumes(server, 8, seconds=0.5))["frames"] >= 4
        with narrow_link.narrow(redis_url, 20_000_000) as url:
            assert 0.3 < narrow_link.start(url, channel)["ready"] < 60


def test_events_have_the_size_that_is_asked_for() -> None:
    """A frame has the requested size, apart from the digits of its numbers."""
    for size in (350, 4096):
        frame = frame_of(data_of(size))
        assert abs(len(frame) - size) < 10


def test_tables_show_medians_ratios_and_whether_aims_are_met() -> None:
    """A table has a line for each case and subject; a target that was not measured is left out."""
    results = Results()
    row = next(row for row in ROWS if row.name == "saturated")
    case = "1,000 clients, 350 B"
    for rate in (3e6, 5e6, 4e6):
        results.add("saturated", case, OURS.name, {"rate": rate, "cpu": 0.1234})
    results.add("saturated", case, row.table.base, {"rate": 70e3})
    table = results.table("saturated", row.table)
    assert f"| {case} | {OURS.name} | 4,000,000 | 0.12 |" in table
    assert "| 57.1 |" in table
    assert aims_table(results).count("\n") == 2
    assert "| >= 30.00 | 57.14 | met |" in aims_table(results)
    assert all(aim.value(Results()) is None for aim in AIMS)


def test_the_picture_has_a_line_for_each_subject() -> None:
    """The chart has a panel for clients and one for replicas; without values there is no chart."""
    results = Results()
    assert picture(results) is None
    for clients, rate in ((1, 1e4), (10_000, 3e6)):
        results.add("clients", f"{clients:,} clients", OURS.name, {"rate": rate})
        results.add("replicas", f"{clients % 9} replicas", OURS.name, {"rate": rate})
    drawn = picture(results)
    assert drawn is not None
    assert drawn.startswith("<svg ")
    assert drawn.count('fill="none"') == 2

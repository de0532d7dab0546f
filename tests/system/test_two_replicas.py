"""Two replicas, 1,000 events and 50 clients of every kind, half of which keep reconnecting."""

import asyncio
import random
import sys
from collections.abc import Sequence
from typing import Any

from tests import processes
from tests.history import History, violations
from tests.system.recording_client import RecordingClient
from tests.system.replica import ROOT, Replica, ReplicaFactory, clean_environment

EVENTS = 500  # from each of two demos
PATTERNS: Sequence[Sequence[str] | None] = (
    None,
    ["alert.*"],
    ["event", "camera.offline"],
    ["detection.*", "worker.recovered", "summary.updated"],
    ["*status*"],
    ["EVENT.created", "scene.changed", "infrastructure_alert"],
    ["alert_[cr]*", "?etection.new"],
    ["nothing.of.this"],
)
ENCODINGS: Sequence[tuple[dict[str, Any], bool]] = (
    ({}, False),
    ({}, True),
    ({"format": "zlib"}, False),
    ({"format": "zlib"}, True),
)


async def demo(replica: Replica, seed: int, history: History, epoch: str) -> None:
    """Run the demo as a process, and record its receipts."""
    options = ["--url", replica.url, "--rate", "0", "--count", str(EVENTS), "--seed", str(seed)]
    command = [sys.executable, "-m", "handlers", "demo", *options]
    posted = await asyncio.to_thread(processes.run, command, cwd=ROOT, env=clean_environment())
    assert posted.returncode == 0, posted.stderr
    for line in posted.stdout.splitlines():
        sequence, kind = line.split()
        history.receipt(kind, None, {"epoch": epoch, "sequence": int(sequence)})


async def test_two_replicas(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Every client ends with exactly the events that match its patterns, in order and each once."""
    # some of the missed events are in memory, others only in Redis
    settings = {"redis_url": valkey, "redis_event_channel": channel, "message_buffer_size": 10}
    pair = start.pair(**settings)
    history = History(marked=False)
    recorders = []
    for number in range(50):
        query, deflate = ENCODINGS[number % len(ENCODINGS)]
        recorder = RecordingClient(f"client {number}", PATTERNS[number % len(PATTERNS)], query=query, deflate=deflate)
        await recorder.connect(pair[number % 2])
        recorders.append(recorder)
    published = asyncio.Event()

    async def move(recorder: RecordingClient) -> None:
        """Disconnect after some messages, with or without a close, and resume at another replica."""
        choice = random.Random(recorder.record.name)
        while not published.is_set():
            assert recorder.connection is not None
            await recorder.connection.receives(choice.randrange(1, 60))
            await recorder.leave(politely=choice.random() < 0.5)
            await recorder.connect(choice.choice(pair))

    moving = [asyncio.create_task(move(recorder)) for recorder in recorders[::2]]
    epoch = pair[0].health()["epoch"]
    await asyncio.gather(*(demo(replica, seed, history, epoch) for seed, replica in enumerate(pair)))
    published.set()
    await asyncio.gather(*moving)
    for recorder in recorders:
        await recorder.reaches(epoch, 2 * EVENTS)
        await recorder.leave(politely=True)

    assert sorted(history.accepted) == [(epoch, number) for number in range(1, 2 * EVENTS + 1)]
    assert violations(history, [recorder.record for recorder in recorders]) == []
    resumed = [each for recorder in recorders for each in recorder.record.connections if each.since]
    assert len(resumed) > 50
    assert any(frame.get("replay") for each in resumed for frame in each.frames)

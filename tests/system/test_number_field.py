"""A front end that takes the frames of one type for a sequence of their own, and asks again at each hole."""

import asyncio
from typing import Any

import pytest

from tests.system.client import Client, connected
from tests.system.producers import marked
from tests.system.replica import Replica, ReplicaFactory

EVENTS = 112
OTHERS = 2  # messages of another type after each event


class FrontEnd:
    """Shows `event` messages whose `sequence` follows the last one shown; at a hole it asks again from there.

    A message without a `sequence` is shown as it is. `limited` counts the errors that it was answered.
    """

    def __init__(self, client: Client) -> None:
        self.shown: list[str] = []
        self.asked = self.limited = 0
        self._client = client
        self._last: int | None = None

    async def run(self, until: str) -> None:
        """Read until the `event` with this id has come as a live frame."""
        while True:
            frame = await self._client.next()
            self.limited += frame.get("error") == "rate_limited"
            if frame.get("type") == "event":
                await self._take(frame)
                if frame["data"]["batch_id"] == until and not frame.get("replay"):
                    await self._client.send("ping")  # its answer follows those to everything before
            if frame.get("type") == "pong":
                return

    async def _take(self, frame: dict[str, Any]) -> None:
        number = frame.get("sequence")
        if number is not None:
            if self._last is not None and number != self._last + 1:
                if number > self._last + 1:
                    self.asked += 1
                    await self._client.send({"type": "resync", "data": {"last_sequence": self._last}})
                return
            self._last = number
        self.shown.append(frame["data"]["batch_id"])


async def publish(replica: Replica) -> list[str]:
    """Publish the events, with others in between; return the ids of the events."""
    ids = [f"b{number}" for number in range(EVENTS)]
    for id in ids:
        event = {"type": "event", "data": {**marked("event", "x"), "batch_id": id}}
        other = {"type": "alert_deleted", "data": marked("alert_deleted", id)}
        assert (await replica.post("/broadcast/batch", [event, *[other] * OTHERS])).status_code == 202
    return ids


@pytest.mark.parametrize("name", ["sequence", "seq"])
async def test_front_end(start: ReplicaFactory, valkey: str, channel: str, name: str) -> None:
    """With `seq` such a front end shows every event; with `sequence` it gets no storm of replays."""
    replica = start(redis_url=valkey, redis_event_channel=channel, websocket_number_field=name)
    async with connected(replica.websocket()) as client:
        front_end = FrontEnd(client)
        showing = asyncio.create_task(front_end.run(f"b{EVENTS - 1}"))
        ids = await publish(replica)
        await showing
        received = [frame for frame in client.messages if frame.get("type") in ("event", "alert_deleted")]
        assert all(name in frame for frame in received)
        if name == "seq":
            assert front_end.shown == ids
            assert client.frames[0]["seq"] == client.frames[0]["lastSeq"]
            assert len(received) == EVENTS * (1 + OTHERS)
        else:
            # 4 replays at once, then one every 5 s; all of this takes less than 20 s
            assert front_end.asked > 20
            assert front_end.asked - 8 <= front_end.limited <= front_end.asked - 4
            assert len(received) < 9 * EVENTS * (1 + OTHERS)

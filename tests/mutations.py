"""Mutation tests: `python -m tests.mutations` breaks the service in one place after the other, and runs tests.

Run by hand; it takes half an hour or less, and arguments select mutations by name. Each mutation is applied to a copy
of the tree in a temporary folder, and each of its tests must fail there. If a test passes, the mutation is printed as
SURVIVED, and the exit status is 1.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A mutation: `old` is replaced by `new` in `file`, and each of `tests` alone must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MODEL: Final = "tests/kernel/test_model.py"

MUTATIONS: Final = (
    Mutation(
        "a catch-up writes under patterns that have changed",
        "kernel/clients/catchup.py",
        "            if selection.patterns is client.patterns:\n",
        "            if True:\n",
        ("tests/kernel/clients/test_catchup.py",),
    ),
    Mutation(
        "a large message is compressed in one go",
        "kernel/log/encodings.py",
        "        yield\n        parts.append(",
        "        parts.append(",
        ("tests/kernel/log/test_encodings.py", "tests/kernel/clients/test_hub.py"),
    ),
    Mutation(
        "the middle generation of garbage grows large",
        "handlers/server/garbage_collector.py",
        "    gc.set_threshold(_NEW_OBJECTS, 1, _MIDDLE_COLLECTIONS)\n",
        "    gc.set_threshold(_NEW_OBJECTS, 20, _MIDDLE_COLLECTIONS)\n",
        ("tests/handlers/server/test_garbage_collector.py",),
    ),
    Mutation(
        "the console calls a lost event excluded",
        "handlers/browser/console/ledger.js",
        "this.filtered ? EXCLUDED : LOST",
        "EXCLUDED",
        ("tests/handlers/browser/test_ledger.py -k without",),
    ),
    Mutation(
        "the console takes its own reconnects for refusals",
        "handlers/browser/console/console.js",
        "  stream = null; // its end is not shown\n",
        "",
        ("tests/system/test_console.py -k patterns",),
    ),
    Mutation(
        "the console publishes an empty number as 0",
        "handlers/browser/console/publish.js",
        'if (text === "" && !(required && kind === "string")) return undefined;',
        "",
        ("tests/system/test_console.py -k publish",),
    ),
    Mutation(
        "a publish that waits holds its data twice",
        "kernel/publishing/publisher.py",
        "            del encoded  # it may",
        "            pass  # it may",
        ("tests/kernel/publishing/test_publisher.py -k memory_of",),
    ),
    Mutation(
        "a subscribe compares all patterns to count acks",
        "kernel/clients/acks.py",
        "    return patterns.matches(_NAMES) if patterns.quick else bool(patterns.known(_NAMES))\n",
        "    return patterns.matches(_NAMES)\n",
        ("tests/kernel/clients/test_acks.py",),
    ),
    Mutation(
        "a subscribe during a delivery compares all patterns",
        "kernel/clients/fanout.py",
        "            if None in verdicts or not all(",
        "            if not all(",
        ("tests/kernel/clients/test_hub.py -k hostile", "tests/kernel/clients/test_fanout.py"),
    ),
    Mutation(
        "a client that a delivery could not reach at once stays live",
        "kernel/clients/hub.py",
        "not self._walk.reach(client):\n                self._put_behind(client)\n",
        "not self._walk.reach(client):\n                pass\n",
        ("tests/kernel/clients/test_hub.py -k hostile",),
    ),
    Mutation(
        "the OpenAPI document is rendered for each request",
        "handlers/openapi/page.py",
        "        if self._rendered is None:\n",
        "        if True:\n",
        ("tests/handlers/openapi/test_page.py",),
    ),
    Mutation(
        "the WebSocket library parses any number of offered extensions",
        "handlers/server/upgrade.py",
        '    if _size(headers, b"sec-websocket-extensions") > _MOST_EXTENSIONS:\n',
        "    if False:\n",
        ("tests/handlers/server/test_upgrade.py",),
    ),
    Mutation(
        "a free object in the OpenAPI document does not say that it takes any field",
        "handlers/openapi/schemas.py",
        '        schema.setdefault("additionalProperties", True)\n',
        "        pass\n",
        ("tests/handlers/openapi/test_document.py",),
    ),
    Mutation(
        "every client of a large fleet is notified in one go",
        "kernel/clients/hub.py",
        "            if pace.over:\n                yield\n",
        "            if False:\n                yield\n",
        ("tests/kernel/clients/test_hub.py",),
    ),
    Mutation(
        "NaN and infinity of a Python caller are published as null",
        "kernel/messages/validation.py",
        "            if not math.isfinite(item):\n                return False\n",
        "            pass\n",
        ("tests/kernel/messages/test_validation.py",),
    ),
    Mutation(
        "receipts are numbered per process",
        "kernel/publishing/publisher.py",
        "        made = ReplayedReceipt if replayed else Receipt\n",
        "        made = ReplayedReceipt if replayed else Receipt\n"
        "        self._number = getattr(self, '_number', 0) + size\n"
        "        first = self._number - size + 1\n",
        (MODEL, "tests/system/test_two_replicas.py"),
    ),
    Mutation(
        "frames are numbered per process",
        "kernel/log/frames.py",
        "            entry.sequence,\n            requires_ack,\n",
        "            setattr(cls, 'count', getattr(cls, 'count', 0) + 1) or cls.count,\n            requires_ack,\n",
        (MODEL, "tests/system/test_two_replicas.py"),
    ),
    Mutation(
        "publishes do not wait for deliveries (no flow control)",
        "kernel/publishing/publisher.py",
        "                await self._flow.enter(len(types), self._require)\n",
        "                self._flow.enter_without_waiting(len(types))\n",
        ("tests/kernel/publishing/test_publisher.py", "tests/system/test_link_faults.py"),
    ),
    Mutation(
        "events missed by the subscription are never fetched",
        "kernel/listening/deafness.py",
        "        return now - self._since < self.grace\n",
        "        return True\n",
        ("tests/kernel/listening/test_deafness.py", "tests/kernel/listening/test_subscription.py"),
    ),
    Mutation(
        "missing events are not refilled",
        "kernel/listening/position_check.py",
        "                frames = await self._log.stored(self._log.place, last)\n",
        "                frames = [Frame(position, b'{}')]\n",
        (MODEL, "tests/kernel/listening/test_position_check.py"),
    ),
    Mutation(
        "a refill does not announce a gap",
        "kernel/listening/position_check.py",
        "                frames = [Frame.gap(epoch, self._log.place.sequence + 1, gone.oldest - 1)]\n",
        "                frames = [Frame(Position(epoch, gone.oldest - 1), b'{}')]\n",
        (MODEL, "tests/kernel/listening/test_position_check.py"),
    ),
    Mutation(
        "a gap between events is not announced",
        "kernel/log/log.py",
        "                yield Frame.gap(epoch, expected, sequence - 1)\n",
        "                pass\n",
        (
            "tests/kernel/log/test_log.py",
            "tests/kernel/listening/test_position_check.py",
            "tests/kernel/clients/test_catchup.py",
        ),
    ),
    Mutation(
        "a replay skips a gap without announcing it",
        "kernel/clients/replay.py",
        "        self._lose(oldest)\n",
        "",
        (MODEL, "tests/kernel/clients/test_replay.py", "tests/kernel/clients/test_catchup.py"),
    ),
    Mutation(
        "the span of a retry outlives the next attempt",
        "telemetry/publish.py",
        "        self.end_retry()\n        self._waited += waited\n",
        "        self._waited += waited\n",
        ("tests/telemetry/test_tracing.py",),
    ),
    Mutation(
        "the metrics thread iterates over clients that come and go",
        "kernel/clients/acks.py",
        "        for client in audience.snapshot():\n",
        "        for client in audience.clients:\n",
        ("tests/kernel/clients/test_acks.py",),
    ),
    Mutation(
        "equal values of two types are encoded as one",
        "telemetry/encoding.py",
        "if type(value) in _CACHED",
        "if isinstance(value, _CACHED)",
        ("tests/telemetry/test_encoding.py",),
    ),
    Mutation(
        "the server span outlives its client's",
        "telemetry/http.py",
        "                span.end(None if answer is None else answer.sent_at)\n",
        "                span.end()\n",
        ("tests/telemetry/test_http.py",),
    ),
    Mutation(
        "a publish is not linked to the call that carried it",
        "telemetry/redis.py",
        "                    companion.span.add_link(context)\n",
        "                    pass\n",
        ("tests/telemetry/test_redis.py", "tests/system/test_traces.py"),
    ),
    Mutation(
        "an outage that is not over at the stop has no span",
        "telemetry/setup.py",
        "            self._tracing.stop()\n",
        "            pass\n",
        ("tests/telemetry/test_setup.py",),
    ),
    Mutation(
        "the code of an error of Redis is its whole text",
        "kernel/redis/failures.py",
        "            return _code(answer) or ",
        "            return str(answer) or ",
        ("tests/kernel/redis/test_failures.py", "tests/telemetry/test_redis.py"),
    ),
    Mutation(
        "a retry is published under a new id",
        "kernel/publishing/publisher.py",
        "                publication = await self._transport.publish(outgoing, self._ring.fence)\n",
        "                again = outgoing._replace(id=secrets.token_hex(8))\n"
        "                publication = await self._transport.publish(again, self._ring.fence)\n",
        (MODEL, "tests/kernel/publishing/test_publisher.py"),
    ),
    Mutation(
        "the script writes no record of a publish",
        "kernel/redis/publish.lua",
        "  redis.call('SET', request.key, record, 'PX', ARGV[request.at + 1])\n",
        "",
        ("tests/kernel/log/test_transport.py", "tests/system/test_publish_faults.py"),
    ),
    Mutation(
        "events are delivered during the trial, before the circuit closes",
        "kernel/listening/subscription.py",
        "                await self._link.present()\n",
        "",
        ("tests/kernel/listening/test_subscription.py", "tests/system/test_degraded.py -k test_degraded_mode"),
    ),
    Mutation(
        "a second listener is started if the first is unhealthy",
        "kernel/listening/supervisor.py",
        "                if task is None or task.done():\n",
        "                if task is None or task.done() or not self.healthy:\n",
        (MODEL, "tests/kernel/listening/test_supervisor.py", "tests/system/test_link_faults.py -k nothing"),
    ),
    Mutation(
        "the old subscription stays open after a restart",
        "kernel/listening/subscription.py",
        "        async with aclosing(self._transport.listen(self._idle)) as batches:\n",
        "        batches = self._transport.listen(self._idle)\n"
        "        self.__dict__.setdefault('left', []).append(batches)\n"
        "        if batches:\n",
        ("tests/kernel/listening/test_subscription.py", "tests/system/test_link_faults.py -k deaf"),
    ),
    Mutation(
        "the back-off grows although each subscription worked",
        "kernel/listening/subscription.py",
        "self._subscribed_at is not None and loop.time() - self._subscribed_at > delay:\n",
        "False:\n",
        ("tests/kernel/listening/test_subscription.py -k worked",),
    ),
    Mutation(
        "the connection of a subscription is not pinged",
        "kernel/redis/subscriber.py",
        "            await self._pubsub.ping()\n",
        "",
        ("tests/kernel/redis/test_subscriber.py -k cuts",),
    ),
    Mutation(
        "a subscription that receives nothing is kept",
        "kernel/listening/subscription.py",
        "                if self._deafness.deaf:\n",
        "                if False:\n",
        ("tests/kernel/listening/test_subscription.py", "tests/system/test_link_faults.py -k deaf"),
    ),
    Mutation(
        "a task is cancelled only once",
        "kernel/resilience/tasks.py",
        "        _, pending = await asyncio.wait(pending, timeout=_AGAIN_SECONDS)\n",
        "        await asyncio.wait(pending)\n        return\n",
        ("tests/kernel/listening/test_supervisor.py",),
    ),
    Mutation(
        "events are sent to clients before they are in the log",
        "kernel/listening/delivery.py",
        "            self._log.append(run)\n            result = await self._fan_out.deliver(run, report.begin)\n",
        "            result = await self._fan_out.deliver(run, report.begin)\n            self._log.append(run)\n",
        ("tests/kernel/listening/test_delivery.py", "tests/kernel/clients/test_hub.py"),
    ),
    Mutation(
        "a check made before the subscription counts",
        "kernel/listening/deafness.py",
        "        self._check_counts = self._subscribed\n",
        "        self._check_counts = True\n",
        ("tests/kernel/listening/test_deafness.py",),
    ),
    Mutation(
        "a delivery does not wake waiting publishes",
        "kernel/listening/delivery.py",
        "        self._observer.delivered(report.delivered(self._log.place, self._clock()))\n"
        "        self._flow_control.wake()\n",
        "        self._observer.delivered(report.delivered(self._log.place, self._clock()))\n",
        ("tests/kernel/listening/test_delivery.py",),
    ),
    Mutation(
        "a cancelled fan-out is not finished",
        "kernel/clients/hub.py",
        "            for _ in steps:\n                pass\n",
        "",
        ("tests/kernel/clients/test_hub.py",),
    ),
    Mutation(
        "the script does not detect a fork",
        "kernel/redis/publish.lua",
        "  if ARGV[4] ~= epoch then return false end\n",
        "  do return false end\n",
        ("tests/kernel/log/test_transport.py", "tests/system/test_epochs.py"),
    ),
    Mutation(
        "calls carry no fence",
        "kernel/log/ring.py",
        "        return self.continuity.fence\n",
        "        return Fence(NOWHERE, '')\n",
        (MODEL, "tests/kernel/listening/test_position_check.py"),
    ),
    Mutation(
        "the fence carries no event id",
        "kernel/log/ring.py",
        "            self.continuity.advance(frame.place, id)\n",
        "            self.continuity.advance(frame.place, '')\n",
        (
            "tests/kernel/listening/test_position_check.py",
            "tests/kernel/log/test_ring.py",
            "tests/system/test_epochs.py -k fresh",
        ),
    ),
    Mutation(
        "an outdated position is taken for a fork",
        "kernel/listening/position_check.py",
        "        return fence, await self._transport.position(fence, probe=probe)\n",
        "        found = await self._transport.position(fence, probe=probe)\n"
        "        if found < self._log.place and found.epoch == self._log.place.epoch:\n"
        "            fence = self._log.ring.fence._replace(position=found._replace(sequence=1 << 49))\n"
        "            found = await self._transport.position(fence)\n"
        "        return fence, found\n",
        ("tests/kernel/listening/test_position_check.py", "tests/system/test_link_faults.py -k overtaken"),
    ),
    Mutation(
        "a client that joins during a fan-out gets the batch twice",
        "kernel/clients/fanout.py",
        "                if passed_over and client in passed_over:\n                    continue\n",
        "",
        ("tests/kernel/clients/test_fanout.py", "tests/kernel/clients/test_hub.py"),
    ),
    Mutation(
        "a client goes live one event too early",
        "kernel/clients/catchup.py",
        "                if frames:\n",
        "                if len(frames) > 1:\n",
        ("tests/kernel/clients/test_hub.py", "tests/kernel/clients/test_catchup.py"),
    ),
    Mutation(
        "a client goes live after the loop has run once more",
        "kernel/clients/hub.py",
        "            if step is Step.GO_LIVE:\n",
        "            await asyncio.sleep(0)\n            if step is Step.GO_LIVE:\n",
        ("tests/kernel/clients/test_hub.py",),
    ),
    Mutation(
        "a failed walk leaves clients that it did not reach",
        "kernel/clients/hub.py",
        "            self._put_unreached_behind(walk)\n",
        "",
        ("tests/kernel/clients/test_hub.py",),
    ),
    Mutation(
        "a replay sends pages that are older than the history",
        "kernel/clients/catchup.py",
        "                    if replay.must_learn:\n",
        "                    if False:\n",
        ("tests/kernel/clients/test_catchup.py",),
    ),
    Mutation(
        "pages are not bounded in bytes",
        "kernel/redis/read.lua",
        "    if size > most and #taken > 0 then\n",
        "    if false then\n",
        ("tests/kernel/log/test_transport.py",),
    ),
    Mutation(
        "memory is not bounded in bytes",
        "kernel/log/ring.py",
        "(self._bytes > self.most_bytes and len(self._frames) > 1)",
        "False",
        ("tests/kernel/log/test_ring.py",),
    ),
    Mutation(
        "a walk does not yield while it encodes",
        "kernel/clients/fanout.py",
        "                for _ in selection:\n                    if pace.over:\n                        yield\n",
        "                for _ in selection:\n                    if False:\n                        yield\n",
        ("tests/kernel/clients/test_fanout.py",),
    ),
    Mutation(
        "a replay asks Redis about nothing",
        "kernel/clients/replay.py",
        "            self.state = ReplayState.ASKING\n            return True\n",
        "            self.state = ReplayState.ASKING\n",
        ("tests/kernel/clients/test_replay.py", "tests/kernel/clients/test_catchup.py"),
    ),
    Mutation(
        "all of a client's message is decoded",
        "kernel/clients/commands.py",
        "    try:\n        return _read_fields(text)\n",
        "    try:\n        msgspec.json.decode(text)\n        return _read_fields(text)\n",
        ("tests/kernel/clients/test_commands.py",),
    ),
    Mutation(
        "resyncs are not limited",
        "kernel/clients/hub.py",
        "        wait = _RESYNC_SECONDS if full else client.resyncs.take(self._clock())\n",
        "        wait = _RESYNC_SECONDS if full else 0\n",
        ("tests/kernel/clients/test_catchup.py",),
    ),
    Mutation(
        "resyncs pile up while Redis is away",
        "kernel/clients/hub.py",
        "        full = len(client.resumes) > _RESYNCS_AT_ONCE\n",
        "        full = False\n",
        ("tests/kernel/clients/test_catchup.py",),
    ),
    Mutation(
        "replayed events are numbered under the default name",
        "kernel/log/log.py",
        "        read = _Read([Frame.of(epoch, entry, self._number_field) for entry",
        "        read = _Read([Frame.of(epoch, entry) for entry",
        ("tests/kernel/test_broadcaster.py",),
    ),
    Mutation(
        "all that one read brings is parsed at once",
        "handlers/server/websocket.py",
        "        return self._waiting < self.config.ws_max_size or self.close_sent\n",
        "        return True\n",
        ("tests/handlers/server/test_websocket.py",),
    ),
    Mutation(
        "slices inflate to any size",
        "handlers/server/websocket.py",
        "            if self.deflates:\n",
        "            if False:\n",
        ("tests/handlers/server/test_websocket.py",),
    ),
    Mutation(
        "pings are parsed without a break",
        "handlers/server/websocket.py",
        "        wait = self._parsing.spend(idle, now) if idle else 0\n",
        "        wait = 0\n",
        ("tests/handlers/server/test_websocket.py",),
    ),
    Mutation(
        "a foreign host is answered on loopback",
        "handlers/cors.py",
        "        if self._rules.refuses_host(host):\n",
        "        if False:\n",
        ("tests/system/test_origins.py -k host",),
    ),
    Mutation(
        "a request does not extend the life of its connection",
        "handlers/server/http.py",
        "                self._start_idle_timer()\n\n",
        "                self.transport.close()\n\n",
        ("tests/system/test_http_limits.py -k kept_alive",),
    ),
    Mutation(
        "large heads are not measured",
        "handlers/server/request_size.py",
        "        return self._fed == 0 and self._segment <= _SMALL_BYTES\n",
        "        return self._fed == 0\n",
        ("tests/system/test_http_limits.py -k largest_head",),
    ),
    Mutation(
        "empty parts of a path evade the check of the origin",
        "handlers/cors.py",
        '    first = next((part for part in path.split("/") if part), "")\n',
        '    first = path.split("/")[1]\n',
        ("tests/system/test_origins.py -k refused_origin",),
    ),
    Mutation(
        "clients are read at any rate",
        "handlers/routes/websocket.py",
        "                if wait and not sink.closed:\n",
        "                if False:\n",
        ("tests/system/test_hostile_clients.py -k rate",),
    ),
    Mutation(
        "a close frame between fragments is a protocol error",
        "handlers/server/websocket.py",
        "            self.current_size = None  #",
        "            pass  #",
        ("tests/handlers/server/test_websocket.py",),
    ),
    Mutation(
        "a slow client is not switched to catch-up",
        "kernel/clients/hub.py",
        "            self._observer.slowed()\n            self._put_behind(client)\n",
        "            self._observer.slowed()\n",
        ("tests/kernel/clients/test_catchup.py", "tests/system/test_slow_clients.py"),
    ),
    Mutation(
        "a new epoch is not announced",
        "kernel/listening/position_check.py",
        "            await self._delivery.deliver([Frame.new_epoch(epoch)])\n",
        "            await self._delivery.deliver([Frame(Position(epoch, 0), b'{}')])\n",
        (MODEL, "tests/kernel/listening/test_position_check.py"),
    ),
    Mutation(
        "heartbeats carry the replica's position",
        "kernel/clients/hub.py",
        "        client.tell(client.heartbeat())\n",
        "        client.tell(type(client.heartbeat())(self._log.place.sequence, self._log.place.epoch))\n",
        (MODEL, "tests/kernel/clients/test_hub.py"),
    ),
    Mutation(
        "a successful read closes a circuit that refused writes opened",
        "kernel/resilience/link.py",
        "        if not self._refused:\n            self._breaker.succeeded(self._clock())\n",
        "        self._breaker.succeeded(self._clock())\n",
        ("tests/kernel/resilience/test_link.py", "tests/kernel/listening/test_position_check.py"),
    ),
    Mutation(
        "announcements are judged by numbers alone",
        "kernel/log/log.py",
        "                if known and known != entry.id:\n",
        "                if False:\n",
        ("tests/kernel/log/test_log.py",),
    ),
    Mutation(
        "announcements are not chained",
        "kernel/log/log.py",
        "                if id and before is not None and before != id:\n",
        "                if False:\n",
        ("tests/kernel/log/test_log.py", "tests/kernel/listening/test_position_check.py"),
    ),
    Mutation(
        "events are taken in spite of a doubt",
        "kernel/log/log.py",
        "                if continuity.doubting:\n",
        "                if False:\n",
        ("tests/kernel/log/test_log.py", "tests/kernel/listening/test_position_check.py"),
    ),
    Mutation(
        "hearsay moves what is verified",
        "kernel/log/continuity.py",
        "        if id and self._unchained <= self._verified[0]:\n",
        "        if id:\n",
        ("tests/kernel/log/test_continuity.py", "tests/kernel/listening/test_position_check.py"),
    ),
    Mutation(
        "left epochs are forgotten",
        "kernel/log/continuity.py",
        "            self._left = (*self._left, left)[-_MOST_LEFT:]\n",
        "            pass\n",
        ("tests/kernel/log/test_continuity.py", "tests/system/test_continuity.py -k comes_back"),
    ),
    Mutation(
        "the script does not compare the verified event",
        "kernel/redis/publish.lua",
        "  for at = 5, 7, 2 do\n",
        "  for at = 5, 5, 2 do\n",
        ("tests/kernel/log/test_transport.py",),
    ),
    Mutation(
        "a doubt is refuted by nothing",
        "kernel/redis/publish.lua",
        "      if here ~= id and (here ~= '' or ARGV[10] == '1') then return true end\n",
        "      if here ~= id and here ~= '' then return true end\n",
        ("tests/kernel/log/test_transport.py", "tests/system/test_continuity.py -k trimmed"),
    ),
    Mutation(
        "a record of a lost epoch is a receipt",
        "kernel/redis/publish.lua",
        "      if not reply or reply[1] ~= current or reply[2] + reply[3] - 1 > sequence then\n",
        "      if not reply then\n",
        ("tests/kernel/log/test_transport.py", "tests/system/test_continuity.py -k lost_epoch"),
    ),
    Mutation(
        "a page of another past is joined",
        "kernel/log/log.py",
        '        if id and page.witness not in ("", id):\n',
        "        if False:\n",
        ("tests/kernel/log/test_log.py", "tests/kernel/listening/test_position_check.py"),
    ),
    Mutation(
        "publishes wait for their turn behind a partition",
        "kernel/redis/publish_queue.py",
        "                    if isinstance(error, TransportUnavailable):\n",
        "                    if False:\n",
        ("tests/kernel/redis/test_publish_queue.py",),
    ),
    Mutation(
        "each call has a deadline of its own",
        "kernel/redis/publish_queue.py",
        "group[0].begin + self._deadline - self._clock())\n",
        "self._deadline)\n",
        ("tests/kernel/redis/test_publish_queue.py",),
    ),
    Mutation(
        "a publish is sent again when its id may be forgotten",
        "kernel/publishing/publisher.py",
        "            if sent_at is not None and self._elapsed() - sent_at > self._most_elapsed:\n",
        "            if False:\n",
        ("tests/kernel/publishing/test_publisher.py",),
    ),
    Mutation(
        "a key is forgotten before its retries are over",
        "kernel/redis/transport.py",
        "max(_KEY_LIFETIME, self._retry_lifetime)\n",
        "_KEY_LIFETIME\n",
        ("tests/kernel/redis/test_transport.py -k lifetime", "tests/system/test_continuity.py -k remembered"),
    ),
    Mutation(
        "metrics and health are on the public port too",
        "handlers/app.py",
        "        route_handlers=public if settings.internal_port is not None else [*public, *operation],\n",
        "        route_handlers=[*public, *operation],\n",
        ("tests/handlers/test_app.py", "tests/system/test_internal_port.py"),
    ),
    Mutation(
        "a database that is no number is taken for 0",
        "handlers/redis_url.py",
        '"(/[0-9]{0,9})?"',
        '".*"',
        ("tests/handlers/test_redis_url.py",),
    ),
    Mutation(
        "the error that redis-py has wrapped is not looked at",
        "kernel/redis/failures.py",
        "        inner = inner.__cause__ or inner.__context__\n",
        "        break\n",
        ("tests/kernel/redis/test_failures.py",),
    ),
    Mutation(
        "every publish is an exemplar, followed or not",
        "kernel/publishing/publisher.py",
        "        if trace.traceparent is not None and self._observer.follows(trace.traceparent):\n",
        "        if trace.traceparent is not None:\n",
        ("tests/kernel/publishing/test_publisher.py -k followed", "tests/telemetry/test_metrics.py"),
    ),
    Mutation(
        "an exemplar stays when there is a newer one",
        "kernel/counters.py",
        "        self.exemplars[bisect_left(self.bounds, value)] = Exemplar(value, traceparent, at)\n",
        "        self.exemplars.setdefault(bisect_left(self.bounds, value), Exemplar(value, traceparent, at))\n",
        ("tests/kernel/test_counters.py",),
    ),
    Mutation(
        "the end of publishes leaves those that wait for a retry",
        "kernel/publishing/publisher.py",
        "                await self._ended.wait()\n",
        "                await asyncio.Event().wait()\n",
        ("tests/kernel/publishing/test_publisher.py -k the_end",),
    ),
    Mutation(
        "the chart writes large numbers with an exponent",
        "k8s/chart/templates/configmap.yaml",
        "  {{- $value = int64 $value }}\n",
        "",
        ("tests/k8s/test_chart.py",),
    ),
    Mutation(
        "the chart's grace period does not follow the drain",
        "k8s/chart/templates/_helpers.tpl",
        'dig "DRAIN_SECONDS" 10 .Values.settings',
        "30",
        ("tests/k8s/test_chart.py",),
    ),
    Mutation(
        "the manifests and the chart differ",
        "k8s/base/poddisruptionbudget.yaml",
        "unhealthyPodEvictionPolicy: AlwaysAllow",
        "unhealthyPodEvictionPolicy: IfHealthyBudget",
        ("tests/k8s/test_chart.py",),
    ),
    Mutation(
        "client.js resumes a replay that was cut off after what had come",
        "handlers/browser/client.js",
        "const position = this.#from ?? this.#seen;",
        "const position = this.#seen;",
        ("tests/handlers/browser/test_states.py",),
    ),
    Mutation(
        "client.js takes numbers of a late replica for those of its own epoch",
        "handlers/browser/client.js",
        'if (!epoch || (this.status.state === "replaying" && epoch !== this.#seen.epoch)) return;',
        "if (!epoch) return;",
        ("tests/handlers/browser/test_states.py",),
    ),
    Mutation(
        "client.js becomes live although its reader has paused it",
        "handlers/browser/client.js",
        'if (!connection.closed && this.status.state === "replaying") this.#live();',
        "this.#live();",
        ("tests/handlers/browser/test_requests.py",),
    ),
    Mutation(
        "the CORS headers of one answer stay in the next",
        "handlers/cors.py",
        'message = {**message, "headers": [*message.get("headers", ()), *headers]}',
        'message["headers"] = [*message.get("headers", ()), *headers]',
        ("tests/handlers/test_cors.py",),
    ),
    Mutation(
        "a failed read that nobody waits for is logged",
        "kernel/log/log.py",
        "            task.exception()  # asyncio",
        "            pass  # asyncio",
        ("tests/kernel/log/test_log.py",),
    ),
    Mutation(
        "events of a stream have the id of the event before",
        "kernel/log/event_stream.py",
        '        return b"%bdata: %b\\n\\n" % (_id(place), ',
        '        return b"%bdata: %b\\n\\n" % (_id(Position(place.epoch, place.sequence - 1)), ',
        ("tests/kernel/log/test_event_stream.py", "tests/system/test_event_stream.py"),
    ),
    Mutation(
        "live events come before the end of a replay",
        "kernel/clients/catchup.py",
        "        client.tell(replay.ack, client.place)\n",
        "        asyncio.get_running_loop().call_later(0.2, client.tell, replay.ack, client.place)\n",
        ("tests/kernel/clients/test_catchup.py",),
    ),
    Mutation(
        "a page that was cut passes the event that it did not take",
        "kernel/clients/page.py",
        "        return Position(self.place.epoch, first - 1)\n",
        "        return Position(self.place.epoch, first)\n",
        ("tests/kernel/clients/test_page.py",),
    ),
    Mutation(
        "a stream that waits for its replay gets a provisional id",
        "kernel/clients/client.py",
        "NOWHERE if waits and not self.encoding.two_way else self.place",
        "self.place",
        ("tests/kernel/clients/test_catchup.py", "tests/system/test_stream_degraded.py"),
    ),
    Mutation(
        "a blocked stream stays live",
        "handlers/routes/event_stream.py",
        "        sink.on_blocked = lambda: broadcaster.hub.fall_behind(client)\n",
        "",
        ("tests/system/test_event_stream.py", "tests/system/test_stream_connections.py"),
    ),
    Mutation(
        "a blocked stream never catches up",
        "handlers/server/event_stream.py",
        "            await self._flow.drain()\n",
        "            await self._loop.create_future()\n",
        ("tests/system/test_event_stream.py",),
    ),
    Mutation(
        "a connection that a stream answers is read on as HTTP",
        "handlers/server/http.py",
        "        self._reading = _ENDED\n        self._when_answered = None\n",
        "",
        ("tests/system/test_stream_connections.py",),
    ),
    Mutation(
        "a walk over pages looks at the clock rarely",
        "kernel/clients/fanout.py",
        "_MANY_SHIFT = 2\n",
        "_MANY_SHIFT = 14\n",
        ("tests/kernel/clients/test_fanout.py",),
    ),
)


def survives(mutation: Mutation, tests: str) -> bool:
    """Return True if the tests pass although the mutation is applied."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=ignored)
        file = copy / mutation.file
        source = file.read_text()
        if source.count(mutation.old) != 1:
            raise SystemExit(f"{mutation.name}: `old` must be in {mutation.file} exactly once; update it here")
        file.write_text(source.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
        try:
            done = subprocess.run(command, cwd=copy, capture_output=True, timeout=600, check=False)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode not in (0, 1):
            output = (done.stdout + done.stderr).decode()
            raise SystemExit(f"{mutation.name}: {tests} could not be run: status {done.returncode}\n{output}")
        return done.returncode == 0


def main() -> int:
    """Run all mutations, or those named on the command line."""
    survivors = 0
    for mutation in MUTATIONS:
        if len(sys.argv) > 1 and mutation.name not in sys.argv[1:]:
            continue
        for tests in mutation.tests:
            begun = time.monotonic()
            survived = survives(mutation, tests)
            survivors += survived
            verdict = "SURVIVED" if survived else "found"
            print(f"{verdict:9}{mutation.name:64}{tests} ({time.monotonic() - begun:.0f} s)", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

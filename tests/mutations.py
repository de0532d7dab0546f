"""Breaks the service on purpose, one thing at a time, to see that tests notice: `python -m tests.mutations`.

By hand, half an hour or less; arguments choose mutations by name. Each is applied to a copy of the tree in a temporary
folder and meets the tests that should fail; whichever survives is printed as such, and the exit status is 1.
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
    """One change: `old` becomes `new` in `file`, and each of `tests` alone must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MODEL: Final = "tests/kernel/test_model.py"

MUTATIONS: Final = (
    Mutation(
        "numbers given per process",
        "kernel/publishing.py",
        "        self._observer.published(Published(types, publication, retries))\n",
        "        self._observer.published(Published(types, publication, retries))\n"
        "        self._number = getattr(self, '_number', 0) + publication.size\n"
        "        publication = publication._replace(first=self._number - publication.size + 1)\n",
        (MODEL, "tests/system/test_two_replicas.py", "tests/system/test_rolling_restart.py"),
    ),
    Mutation(
        "no refill of a hole",
        "kernel/listener.py",
        "                missed = await self._refill(position)\n",
        "                missed = False\n                self._log.append([Frame(position, b'')])\n",
        (MODEL, "tests/kernel/test_listener.py"),
    ),
    Mutation(
        "no internal id: a retry is another publish",
        "kernel/publishing.py",
        "                publication = await self._transport.publish(outgoing, self._fence())\n",
        "                again = outgoing._replace(id=secrets.token_hex(8))\n"
        "                publication = await self._transport.publish(again, self._fence())\n",
        (MODEL, "tests/kernel/test_publishing.py"),
    ),
    Mutation(
        "a walk that is cancelled is not finished",
        "kernel/hub.py",
        "                for _ in steps:\n                    pass\n",
        "",
        ("tests/kernel/test_hub.py",),
    ),
    Mutation(
        "no fence: a fork is not seen",
        "kernel/publish.lua",
        "  if ARGV[4] ~= epoch then return false end\n",
        "  do return false end\n",
        ("tests/kernel/test_transport.py", "tests/system/test_redis.py"),
    ),
    Mutation(
        "no fence handed over",
        "kernel/history.py",
        "        return Fence(self.place, self._id)\n",
        "        return Fence(NOWHERE, '')\n",
        (MODEL, "tests/kernel/test_listener.py"),
    ),
    Mutation(
        "the fence has no id",
        "kernel/history.py",
        '            self._id = "" if frame.entry is None else frame.entry.id\n',
        '            self._id = ""\n',
        ("tests/kernel/test_listener.py tests/kernel/test_history.py tests/kernel/test_broadcaster.py",),
    ),
    Mutation(
        "who joins during a walk gets it twice",
        "kernel/fanout.py",
        "                if client.place is not start:\n                    continue\n",
        "",
        (MODEL, "tests/kernel/test_fanout.py"),
    ),
    Mutation(
        "live one event too early",
        "kernel/catchup.py",
        "            if not frames:\n",
        "            if len(frames) < 2:\n",
        (MODEL, "tests/kernel/test_catchup.py"),
    ),
    Mutation(
        "a slow client is never behind",
        "kernel/hub.py",
        "        if client.delivery is Delivery.LIVE:\n            self._leave_live(client, Delivery.BEHIND)\n",
        "        if client.resumes:\n            self._leave_live(client, Delivery.BEHIND)\n",
        ("tests/system/test_slow_clients.py",),
    ),
    Mutation(
        "a replay skips the gap that it should announce",
        "kernel/catchup.py",
        "                oldest = gone.oldest\n",
        "",
        (MODEL, "tests/kernel/test_catchup.py"),
    ),
    Mutation(
        "an epoch begins without a word",
        "kernel/listener.py",
        "            await self._deliver([Frame.new_epoch(epoch)], None)\n",
        "            self._log.append([Frame.new_epoch(epoch)])\n",
        (MODEL, "tests/kernel/test_listener.py"),
    ),
    Mutation(
        "heartbeats tell the replica's place",
        "kernel/hub.py",
        "        client.tell(Ping(client.place.sequence, client.place.epoch))\n",
        "        client.tell(Ping(self._log.place.sequence, self._log.place.epoch))\n",
        (MODEL, "tests/kernel/test_hub.py"),
    ),
)


def survives(mutation: Mutation, tests: str) -> bool:
    """Whether these tests pass with the mutation in place."""
    with tempfile.TemporaryDirectory(prefix="event-broadcaster-mutation-") as folder:
        copy = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=ignored)
        file = copy / mutation.file
        source = file.read_text()
        if source.count(mutation.old) != 1:
            raise SystemExit(f"{mutation.name}: {mutation.file} has changed, and so must this script")
        file.write_text(source.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
        try:
            done = subprocess.run(command, cwd=copy, capture_output=True, timeout=600, check=False)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode not in (0, 1):
            raise SystemExit(f"{mutation.name}: {tests} could not be run\n{done.stdout.decode()}")
        return done.returncode == 0


def main() -> int:
    """Try all, or those that are named."""
    survivors = 0
    for mutation in MUTATIONS:
        if len(sys.argv) > 1 and mutation.name not in sys.argv[1:]:
            continue
        for tests in mutation.tests:
            begun = time.monotonic()
            survived = survives(mutation, tests)
            survivors += survived
            verdict = "SURVIVED" if survived else "found"
            print(f"{verdict:9}{mutation.name:45}{tests} ({time.monotonic() - begun:.0f} s)", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

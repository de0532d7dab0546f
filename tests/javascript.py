"""Streams of client.js in Node.js: each runs on command, and what it reports is collected and can be checked."""

import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Self

import pytest

from tests import processes
from tests.history import ClientRecord, Connection
from tests.waiting import eventually

__all__ = ["CLIENT", "TOOLS", "JavaScript", "Listener", "Received", "find_node", "missing"]

ROOT: Final = Path(__file__).parents[1]
CLIENT: Final = ROOT / "handlers" / "browser" / "client.js"
TOOLS: Final = ROOT / ".generators"
"""The folder into which `tests/system/generators/install` puts Node.js and its packages."""

_OLDEST: Final = 22
_PATIENCE: Final = 20.0

Frame = dict[str, Any]
Position = Mapping[str, Any]


@cache
def find_node() -> str:
    """Return the path of Node.js 22 or newer; without one, fail the test if ALL_TESTS is set, else skip it."""
    for program in (TOOLS / "bin" / "node", shutil.which("node")):
        if program is not None and Path(program).exists():
            # a wheel's `node` is a script that starts the program
            version, path = processes.run([program, "-p", "process.versions.node+' '+process.execPath"]).stdout.split()
            if int(version.partition(".")[0]) >= _OLDEST:
                return path
    return missing(f"no Node.js {_OLDEST} or newer; run tests/system/generators/install")


def missing(text: str) -> NoReturn:
    """Fail the test if ALL_TESTS is set, else skip it."""
    if "ALL_TESTS" in os.environ:
        pytest.fail(text)
    pytest.skip(text)


class Received(NamedTuple):
    """A message that the application got, and the stream's position then."""

    frame: Frame
    position: Position


class Listener:
    """One stream: everything that it has reported, in order.

    `name` identifies it among those of its program; `patterns` are those that it connects with, None for everything.
    """

    def __init__(self, name: str, patterns: Sequence[str] | None = None) -> None:
        self.name = name
        self.patterns = patterns
        self.received: list[Received] = []
        self.numbers: list[int] = []
        """The numbers of the events."""
        self.statuses: list[Frame] = []
        self.errors: list[Frame] = []
        self.tokens: list[str | None] = []
        self.start: Position | None = None
        """The position at which it became live first."""
        self.position: Position | None = None
        self.ended = False
        self.threw = ""
        self.stored: dict[str, str] | None = None

    def take(self, report: Frame) -> None:
        """Take one report."""
        if "position" in report:
            self.position = report["position"]
        if "message" in report:
            self.received.append(Received(report["message"], report["position"]))
            if "sequence" in report["message"]:
                self.numbers.append(report["message"]["sequence"])
        elif "status" in report:
            self.statuses.append(report["status"])
            if report["status"]["state"] == "live" and self.start is None:
                self.start = self.position
        elif "error" in report:
            self.errors.append(report["error"])
        elif "token" in report:
            self.tokens.append(report["token"])
        elif "stored" in report:
            self.stored = report["stored"]
        else:
            self.ended = report.get("ended", self.ended)
            self.threw = report.get("threw", self.threw)

    def connection(self, url: str, **options: object) -> Frame:
        """Return the values of the command `connect` that starts it."""
        if self.patterns is not None:
            options = {"events": self.patterns, **options}
        return {"name": self.name, "url": url, "options": options}

    @property
    def frames(self) -> list[Frame]:
        """The messages."""
        return [each.frame for each in self.received]

    @property
    def states(self) -> list[str]:
        """The states in order."""
        return [status["state"] for status in self.statuses]

    @property
    def delays(self) -> list[float]:
        """The announced delays of the reconnects."""
        return [status["delay"] for status in self.statuses if "delay" in status]

    async def becomes(self, *states: str) -> None:
        """Wait until the last states are these."""
        await eventually(lambda: self.states[-len(states) :] == list(states), _PATIENCE)

    async def has(self, *numbers: int) -> None:
        """Wait until it has as many events, and compare their numbers."""
        await eventually(lambda: len(self.numbers) >= len(numbers), _PATIENCE)
        assert self.numbers == list(numbers)

    async def gets(self, frame: Frame) -> None:
        """Wait for a message, which must be the last one."""
        await eventually(lambda: frame in self.frames, _PATIENCE)
        assert self.frames[-1] == frame

    def record(self) -> ClientRecord:
        """Return what the application was told, as one connection for the history checker.

        The reconnects are invisible to the application: an event comes once, in order, or its loss is announced. A
        verdict announces a loss after the events that were replayed; here it stands before them.
        """
        assert self.start is not None
        epoch = self.start["epoch"]
        frames: list[Frame] = [{"type": "connected", "epoch": epoch, "lastSeq": self.start["sequence"]}]
        replayed = 1  # the index of the first frame of the current replay
        untold = False
        for frame, position in self.received:
            if position["epoch"] != epoch:
                epoch = position["epoch"]
                untold = frame["type"] not in ("epoch_changed", "resync_ack")
                frames.append({"type": "epoch_changed", "epoch": epoch})
                replayed = len(frames)
            if frame["type"] == "resync_ack":
                untold &= not frame.get("epoch_changed")
                if frame.get("gap_too_old"):
                    asked = 0 if frame.get("epoch_changed") else frame["last_sequence"]
                    frames[replayed:] = _with_gaps(frames[replayed:], asked, frame["oldest_available"])
                replayed = len(frames)
            elif frame["type"] != "epoch_changed":
                frames.append({name: value for name, value in frame.items() if name != "replay"})
                if "sequence" in frame and "replay" not in frame:
                    replayed = len(frames)
        assert not untold, "the application was not told of a new epoch"
        return ClientRecord(self.name, self.patterns, [Connection("client.js", None, "", frames)])


def _with_gaps(replayed: list[Frame], asked: int, oldest: int) -> list[Frame]:
    """Return these frames with gaps for the numbers after `asked` and before `oldest` that are not among them.

    Several replays may have been cut off before the verdict, with the loss between them.
    """
    found = []
    for frame in [*replayed, {"sequence": oldest}]:
        number = min(frame.get("sequence", frame.get("from")), oldest)
        if number > asked + 1:
            found.append({"type": "gap", "from": asked + 1, "to": number - 1})
        asked = max(asked, frame.get("sequence", frame.get("to")))
        found.append(frame)
    return found[:-1]


class JavaScript:
    """A Node.js process that runs streams; use it as `with JavaScript() as javascript`."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[str]
        self._thread = threading.Thread(target=self._read)
        self._done = threading.Semaphore(0)
        self.listeners: dict[str, Listener] = {}

    def __enter__(self) -> Self:
        program = [find_node(), Path(__file__).with_suffix(".mjs"), CLIENT.as_uri()]
        pipe = subprocess.PIPE
        self._process = processes.start(program, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.poll() is None, "a stream made the program end"
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._thread.join()
        processes.end(self._process)

    def command(self, do: str, **values: object) -> None:
        """Run a command of javascript.mjs; returns when it has been done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        assert self._done.acquire(timeout=_PATIENCE)

    def connect(
        self, url: str, options: Frame | None = None, patterns: Sequence[str] | None = None, **values: object
    ) -> Listener:
        """Start a stream; `values` are others of the command."""
        listener = Listener(f"stream {next(self._numbers)}", patterns)
        self.listeners[listener.name] = listener
        self.command("connect", **listener.connection(url, **(options or {})), **values)
        return listener

    def call(self, listener: Listener, method: str, *values: object) -> None:
        """Call a method of a stream."""
        self.command("call", name=listener.name, method=method, values=values)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report = json.loads(line)
            if "done" in report:
                self._done.release()
            else:
                self.listeners[report["name"]].take(report)

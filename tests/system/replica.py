"""One replica as a real process: started with settings by name, watched by its log, ended as an operator ends it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import eventually

__all__ = ["ROOT", "Replica", "clean_environment", "wait_until"]

ROOT = Path(__file__).parents[2]

# Longer than anything takes on a busy machine; no test waits for it unless it fails.
PATIENCE = 20.0

# What no log of a healthy service holds: errors, tracebacks, Python's own warnings.
_COMPLAINTS = re.compile(r" (ERROR|CRITICAL) |Traceback|Warning: |Exception ignored|never (awaited|retrieved)")


def clean_environment(**settings: object) -> dict[str, str]:
    """An environment with these settings (names in lower case) and none of ours."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {name.upper(): str(value) for name, value in settings.items()}


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until a condition is true; for what happens outside of any event loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.01)


class Replica:
    """`python -m handlers serve`, or another `module` that serves as well, on a free port.

    `settings` are those of the environment, in lower case. The log goes to a file of its own; `stop` reads it.
    """

    def __init__(self, log: Path, *, module: Any = "handlers serve", **settings: object) -> None:
        self.settings = {"host": "127.0.0.1", "port": 0, "drain_seconds": 0.1, **settings}
        self.port = 0
        self._log = log
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    # -- the process ----------------------------------------------------------------------------------------------

    def start(self, *, ready: bool = True) -> Self:
        """Start it and wait until it is ready, or only until it answers."""
        # warnings are shown, and no log may have one
        command = [sys.executable, "-W", "always", "-m", *self._module.split()]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(**self.settings), stderr=log)
        wait_until(lambda: self._running_on() or self._process_has_ended())
        self.port = self._running_on()
        assert self.port, self.log
        wait_until(lambda: self.get("/health/ready" if ready else "/health/live").status_code == 200)
        return self

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        self._running.send_signal(number)

    def ended(self, seconds: float = PATIENCE) -> int:
        """Wait for the end; returns the exit status."""
        status = self._running.wait(seconds)
        self._process = None
        return status

    def stop(self, *, tolerate: str = "(?!)") -> None:
        """End it with SIGTERM; it has to go with status 0, and its log must hold no complaint but tolerated ones."""
        if self._process is None:
            return
        self.signal()
        try:
            status = self.ended()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIGTERM did not end it\n{self.log}") from None
        assert status == 0, f"status {status}\n{self.log}"
        complaints = [line for line in self.log.splitlines() if _COMPLAINTS.search(line)]
        assert not [line for line in complaints if not re.search(tolerate, line)], self.log

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running.pid

    @property
    def log(self) -> str:
        """Everything that it has logged."""
        return self._log.read_text()

    # -- as its users reach it ------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where its routes are."""
        return f"http://127.0.0.1:{self.port}"

    def websocket(self, **query: object) -> str:
        """The WebSocket's URL with these query parameters."""
        return f"ws://127.0.0.1:{self.port}/ws/events" + (f"?{urlencode(query)}" if query else "")

    def get(self, path: str) -> httpx.Response:
        """Ask a route; for what must not wait for an event loop."""
        with httpx.Client(verify=False, trust_env=False, base_url=self.url, timeout=PATIENCE) as http:
            return http.get(path)

    def health(self) -> dict[str, Any]:
        """What `/health` says."""
        report: dict[str, Any] = self.get("/health").json()
        return report

    def metric(self, name: str, **labels: str) -> float:
        """One metric, without `event_broadcaster_`; of several samples with these labels the sum."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        wanted = [each for each in samples if each.name == f"event_broadcaster_{name}"]
        return sum(each.value for each in wanted if labels.items() <= each.labels.items())

    async def delivers(self, sequence: int) -> None:
        """Wait until it has delivered that number: a receipt says only that Redis has it."""
        await eventually(lambda: self.health()["sequence"] >= sequence, PATIENCE)

    async def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """One HTTP request on a connection of its own."""
        async with self.http() as http:
            return await http.request(method, path, **arguments)

    async def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        """Post JSON; header names with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("POST", path, json=body, headers=named)

    def http(self) -> httpx.AsyncClient:
        """A client with kept-alive connections."""
        return httpx.AsyncClient(verify=False, trust_env=False, base_url=self.url, timeout=PATIENCE)

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "it is not running"
        return self._process

    def _running_on(self) -> int:
        found = re.search(r"running on http://[^ ]+:(\d+) ", self.log)
        return int(found[1]) if found else 0

    def _process_has_ended(self) -> bool:
        return self._running.poll() is not None

"""Replicas as real processes: started with settings by name, watched by their logs, ended as an operator ends them."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests import processes
from tests.waiting import eventually, wait_until

__all__ = ["FAST", "PATIENCE", "ROOT", "Replica", "ReplicaFactory", "clean_environment"]

ROOT = Path(__file__).parents[2]

# Seconds; longer than anything takes on a busy machine. A test waits that long only if it fails.
PATIENCE = 20.0

# Short intervals, so that no test waits for a timer.
FAST = {
    "websocket_ping_interval_seconds": 0.2,
    "position_check_seconds": 1,
    "supervision_interval_seconds": 1,
    "broadcast_base_delay_seconds": 0.05,
    "message_buffer_size": 20,
}

# Lines that no log of a healthy service contains: errors, tracebacks, Python warnings.
_COMPLAINTS = re.compile(r" (ERROR|CRITICAL) |Traceback|Warning: |Exception ignored|never (awaited|retrieved)")


def clean_environment(**settings: object) -> dict[str, str]:
    """Return an environment with these settings (names in lower case) and without those of the test run."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {name.upper(): str(value) for name, value in settings.items()}


class Replica:
    """`python -m handlers serve`, or another `module` that accepts the same settings, on a free port.

    `prefix` is put before the command, `stdin` is a file descriptor for its standard input, `root` is the tree that it
    runs from. `settings` are environment variables, in lower case. The log goes to a file of its own, which `stop`
    checks.
    """

    def __init__(
        self,
        log: Path,
        *,
        module: Any = "handlers serve",
        prefix: Any = (),
        stdin: Any = None,
        root: Any = ROOT,
        **settings: object,
    ) -> None:
        self.settings = {"host": "127.0.0.1", "port": 0, "drain_seconds": 0.1, **settings}
        self.port = 0
        self.internal_port = 0
        """The port of metrics and health: `port`, or with `internal_port` among the settings its own."""
        self._log = log
        self._module = module
        self._prefix = prefix
        self._stdin = subprocess.DEVNULL if stdin is None else stdin
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None

    # -- the process ----------------------------------------------------------------------------------------------

    def start(self, *, ready: bool = True) -> Self:
        """Start it and wait until it is ready or, without `ready`, until it answers."""
        # warnings are shown because `stop` fails if the log has one
        command = [*self._prefix, sys.executable, "-W", "always", "-m", *self._module.split()]
        environment = clean_environment(**self.settings)
        with self._log.open("wb") as log:
            self._process = processes.start(command, cwd=self._root, env=environment, stdin=self._stdin, stderr=log)
        wait_until(lambda: self._running_on() or self._process_has_ended(), PATIENCE)
        self.port = self._running_on()
        assert self.port, self.log
        apart = re.search(r"metrics and health are served on port (\d+) alone", self.log)
        self.internal_port = int(apart[1]) if apart else self.port
        wait_until(lambda: self.internal("/health/ready" if ready else "/health/live").status_code == 200, PATIENCE)
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
        """End it with SIGTERM; fails unless the status is 0 and each error or warning in the log matches `tolerate`."""
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
        """End it with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running.pid

    @property
    def memory(self) -> int:
        """Resident memory of the process, in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def sockets(self) -> int:
        """The number of connections to its port for which the operating system still holds a socket."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        states = [fields[3] for fields in lines if fields[1].endswith(f":{self.port:04X}")]
        return sum(state not in ("06", "0A") for state in states)  # neither TIME_WAIT nor LISTEN

    @property
    def log(self) -> str:
        """Return everything that it has logged."""
        return self._log.read_text()

    # -- HTTP and WebSocket ---------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The base URL of its routes."""
        return f"http://127.0.0.1:{self.port}"

    def websocket(self, **query: object) -> str:
        """The WebSocket's URL with these query parameters."""
        return f"ws://127.0.0.1:{self.port}/ws/events" + (f"?{urlencode(query)}" if query else "")

    def get(self, path: str) -> httpx.Response:
        """Send a GET request, without an event loop."""
        return self._get(self.port, path)

    def internal(self, path: str) -> httpx.Response:
        """Send a GET request to the port of metrics and health, without an event loop."""
        return self._get(self.internal_port, path)

    def health(self) -> dict[str, Any]:
        """Return the report of `/health`."""
        report: dict[str, Any] = self.internal("/health").json()
        return report

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric, named without `event_broadcaster_`; the sum of all samples with these labels."""
        families = text_string_to_metric_families(self.internal("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        wanted = [each for each in samples if each.name == f"event_broadcaster_{name}"]
        return sum(each.value for each in wanted if labels.items() <= each.labels.items())

    async def delivers(self, sequence: int) -> None:
        """Wait until it has delivered this sequence number: a receipt says only that Redis has it."""
        await eventually(lambda: self.health()["sequence"] >= sequence, PATIENCE)

    async def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send an HTTP request on a connection of its own."""
        async with self.http() as http:
            return await http.request(method, path, **arguments)

    async def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        """Post JSON; header names have underscores for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("POST", path, json=body, headers=named)

    def http(self) -> httpx.AsyncClient:
        """Return an HTTP client that keeps its connections alive."""
        return httpx.AsyncClient(verify=False, trust_env=False, base_url=self.url, timeout=PATIENCE)

    def _get(self, port: int, path: str) -> httpx.Response:
        with httpx.Client(verify=False, trust_env=False, timeout=PATIENCE) as http:
            return http.get(f"http://127.0.0.1:{port}{path}")

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "the replica is not running"
        return self._process

    def _running_on(self) -> int:
        found = re.search(r"running on http://[^ ]+:(\d+) ", self.log)
        return int(found[1]) if found else 0

    def _process_has_ended(self) -> bool:
        return self._running.poll() is not None


class ReplicaFactory:
    """Starts replicas, `start(**settings)`, and stops those that are still running at the end of the block."""

    _numbers = count(1)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._replicas: list[Replica] = []

    def __call__(self, *, ready: object = True, **settings: object) -> Replica:
        """Start one with these settings, and wait until it is ready or, without `ready`, until it answers."""
        replica = Replica(self._folder / f"replica-{next(self._numbers)}.log", **(FAST | settings))
        self._replicas.append(replica)
        return replica.start(ready=bool(ready))

    def pair(self, **settings: object) -> tuple[Replica, Replica]:
        """Start two with the same settings, concurrently."""
        with ThreadPoolExecutor() as pool:
            first, second = pool.map(lambda _: self(**settings), range(2))
        return first, second

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for replica in self._replicas if kind is None else ():
                replica.stop()
        finally:
            for replica in self._replicas:
                replica.kill()

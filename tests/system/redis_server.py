"""Redis servers that a test may kill, freeze, restart from disk, replicate and promote."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from handlers.server.embedded import find_binary
from tests import processes
from tests.system.replica import PATIENCE
from tests.waiting import wait_until

__all__ = ["RedisServer"]

_POSITION, _HISTORY = "{security_events}:position", "{security_events}:history"


class RedisServer:
    """A server process on a Unix socket, its files in a folder of its own; `options` are command-line options.

    It is the Redis of the system if installed, else Valkey. Use it as `with RedisServer() as server`.
    """

    def __init__(self, **options: str) -> None:
        self._options = {"save": "", "appendonly": "no"} | options
        # a short name because the path of a socket has at most 103 bytes
        self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.path = str(self._folder / "socket")
        self.link: Any = redis.Redis(unix_socket_path=self.path, socket_timeout=PATIENCE)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Its URL, without a proxy."""
        return f"unix://{self.path}"

    def start(self) -> Self:
        """Start it with the data on disk, and wait until it answers."""
        binary = shutil.which("redis-server") or find_binary()
        command = [binary, "--port", "0", "--unixsocket", "socket", "--loglevel", "warning", *self._arguments()]
        with (self._folder / "log").open("ab") as log:
            self._process = processes.start(command, cwd=self._folder, stdout=log, stderr=log)
        wait_until(self._answers)
        return self

    def kill(self) -> None:
        """End it with SIGKILL; data not yet written to disk is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill it and remove its files."""
        self.kill()
        self.link.close()
        shutil.rmtree(self._folder)

    def freeze(self) -> None:
        """Suspend the process; its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def copy(self, port: int) -> None:
        """Become a replica of the Redis on that port of the loopback interface."""
        self.link.replicaof("127.0.0.1", port)

    def promote(self) -> None:
        """Become a primary again."""
        self.link.replicaof("NO", "ONE")

    def dump(self) -> tuple[bytes, bytes]:
        """Return the position and the history, as `restore` takes them."""
        position, history = self.link.pipeline().dump(_POSITION).dump(_HISTORY).execute()
        return position, history

    def restore(self, dump: tuple[bytes, bytes]) -> None:
        """Go back to a dump without its idempotency records, while all connections stay open."""
        pipeline = self.link.pipeline()
        for key in self.link.keys("*:idempotency:*"):
            pipeline.delete(key)
        for key, value in zip((_POSITION, _HISTORY), dump, strict=True):
            pipeline.restore(key, 0, value, replace=True)
        pipeline.execute()

    @property
    def position(self) -> tuple[str, int]:
        """The stored epoch and sequence number; ("", 0) if there are none."""
        epoch, sequence = self.link.hmget(_POSITION, "epoch", "sequence")
        return (epoch or b"").decode(), int(sequence or 0)

    @property
    def listeners(self) -> int:
        """The number of subscriptions to the event channel."""
        return int(self.link.pubsub_numsub("security_events")[0][1])

    def _arguments(self) -> Iterator[str]:
        for name, value in self._options.items():
            yield "--" + name.replace("_", "-")
            yield value

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            # while it loads its data it answers with an error
            return bool(self.link.ping())
        except redis.RedisError:
            return False

"""Redis servers that a test may treat badly: killed, frozen, restarted from what they kept, copied, promoted."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from handlers.server import embedded
from tests.system.replica import PATIENCE, wait_until

__all__ = ["RedisServer"]


class RedisServer:
    """A server process on a Unix socket, its files in a folder of its own; `options` are those of its command line.

    It is the system's Redis where there is one, else Valkey. Use it as `with RedisServer() as server`.
    """

    def __init__(self, **options: str) -> None:
        self._options = {"save": "", "appendonly": "no"} | options
        # a short name: a socket's path has 103 bytes at most
        self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.path = str(self._folder / "socket")
        self.link: Any = redis.Redis(unix_socket_path=self.path, socket_timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.link.close()
        shutil.rmtree(self._folder)

    @property
    def url(self) -> str:
        """Where it is found without a proxy."""
        return f"unix://{self.path}"

    def start(self) -> Self:
        """Start it with whatever it finds on disk, and wait until it answers."""
        binary = shutil.which("redis-server") or embedded._find_binary()
        command = [binary, "--port", "0", "--unixsocket", "socket", "--loglevel", "warning", *self._arguments()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log)
        wait_until(self._answers)
        return self

    def kill(self) -> None:
        """End it at once: what it has not written is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it in its tracks; its connections stand."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def copy(self, port: int) -> None:
        """Be a copy of the Redis on that port of the loopback, from now on."""
        self.link.replicaof("127.0.0.1", port)

    def promote(self) -> None:
        """Be a copy no longer."""
        self.link.replicaof("NO", "ONE")

    @property
    def position(self) -> tuple[str, int]:
        """The numbering that it holds, ("", 0) if none."""
        epoch, sequence = self.link.hmget("{security_events}:position", "epoch", "sequence")
        return (epoch or b"").decode(), int(sequence or 0)

    @property
    def listeners(self) -> int:
        """How many subscriptions it knows of."""
        return int(self.link.pubsub_numsub("security_events")[0][1])

    def _arguments(self) -> Iterator[str]:
        for name, value in self._options.items():
            yield "--" + name.replace("_", "-")
            yield value

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            # while it loads it answers with an error
            return bool(self.link.ping())
        except redis.RedisError:
            return False

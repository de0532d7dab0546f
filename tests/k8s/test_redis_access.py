"""The production example on a real Redis: TLS with a private CA, and an ACL user with the least rights."""

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from handlers.openapi.examples import EXAMPLES
from tests import processes
from tests.k8s.tools import K8S, run, tool
from tests.system.client import connected
from tests.system.replica import ReplicaFactory
from tests.waiting import wait_until

PASSWORD = "not-a-real-one"
CHANNEL = "security_events"


class Server(NamedTuple):
    """A Redis with TLS: the URL for the service, and an administrator's connection."""

    url: str
    admin: redis.Redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Start a Redis server with TLS, the ACL user of the production example, and an administrator."""
    openssl = tool("openssl", "Debian's package openssl")
    binary = tool("redis-server", "Debian's package redis-server")
    new = (openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    names = ("-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1")
    run(*new, *names, "-keyout", tmp_path / "key", "-out", tmp_path / "ca.crt")
    assert ">PASSWORD " in _rule()
    rules = [_rule().replace("PASSWORD", PASSWORD), f"user admin on >{PASSWORD} ~* &* +@all", "user default off"]
    (tmp_path / "users.acl").write_text("\n".join(rules) + "\n")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [
        binary,
        "--port",
        "0",
        "--tls-port",
        str(port),
        "--tls-auth-clients",
        "no",
        "--save",
        "",
        "--dir",
        tmp_path,
    ]
    command += ["--tls-cert-file", tmp_path / "ca.crt", "--tls-key-file", tmp_path / "key"]
    command += ["--tls-ca-cert-file", tmp_path / "ca.crt", "--aclfile", tmp_path / "users.acl"]
    with (tmp_path / "log").open("wb") as log, processes.running(command, stdout=log) as process:
        rest = f":{PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'ca.crt'}"
        with redis.Redis.from_url(f"rediss://admin{rest}") as admin:
            wait_until(lambda: process.poll() is not None or _answers(admin))
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield Server(f"rediss://event-broadcaster{rest}", admin)


def _rule() -> str:
    """Return the rule of the example's user."""
    lines = (K8S / "overlays/production/redis.acl").read_text().splitlines()
    (rule,) = (line for line in lines if line.startswith("user "))
    return rule


def _answers(admin: redis.Redis) -> bool:
    try:
        return bool(admin.ping())
    except redis.ConnectionError:
        return False


async def test_the_example_suffices(server: Server, start: ReplicaFactory) -> None:
    """With the example's ACL, the service publishes, delivers and replays, and Redis denies none of its commands."""
    replica = start(redis_url=server.url)
    for kind in ("event", "camera_status"):
        path = f"/broadcast/{kind.replace('_', '-')}"
        assert (await replica.post(path, EXAMPLES[kind]["data"], idempotency_key=kind)).status_code == 202
        assert (await replica.post(path, EXAMPLES[kind]["data"], idempotency_key=kind)).status_code == 202
    async with connected(replica.websocket(since=0)) as client:
        await client.take(type="resync_ack", replayed_count=2)
    server.admin.execute_command("FLUSHALL")  # starting a new epoch needs further commands
    server.admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    assert (await replica.post("/broadcast/event", EXAMPLES["event"]["data"])).json()["sequence"] == 1
    assert replica.health()["redis"] == "reachable"
    refused = [entry for entry in server.admin.acl_log() if entry["username"] == "event-broadcaster"]
    assert not refused
    replica.stop()
    used = {name.removeprefix("cmdstat_") for name in server.admin.info("commandstats")}
    assert set(re.findall(r"\+([a-z|]+)", _rule())) <= used, "a command is allowed that is not used"


def test_the_example_allows_nothing_else(server: Server) -> None:
    """The example's user cannot use other keys or channels, and no other user may publish on its channel."""
    with redis.Redis.from_url(server.url) as ours:
        for command in (
            ("GET", "other"),
            ("SET", "other", "1"),
            ("PUBLISH", "other", "1"),
            ("SUBSCRIBE", "other"),
            ("KEYS", "*"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("CLIENT", "LIST"),
            ("EVAL", "return 1", "0"),
            ("MULTI",),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                ours.execute_command(*command)
    stranger = server.url.replace("event-broadcaster", "default")
    with redis.Redis.from_url(stranger) as other, pytest.raises(redis.AuthenticationError):
        other.publish(CHANNEL, "forged")

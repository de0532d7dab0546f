"""nginx and HAProxy as processes of their own, in front of a replica, as operators set them up."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import processes
from tests.waiting import wait_until

__all__ = ["haproxy", "haproxy_tcp", "nginx", "program"]

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log notice;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream events {{ server 127.0.0.1:{upstream}; keepalive 128; }}
    server {{
        listen 127.0.0.1:{port};
        location {prefix}/ {{
            proxy_pass http://events{strip};
            proxy_read_timeout {idle};
            proxy_set_header Host $host;
            {upgrade}
        }}
    }}
}}
"""

UPGRADE = """
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
"""

HAPROXY = """
defaults
    mode http
    option abortonclose
    timeout connect 5s
    timeout client {idle}
    timeout server {idle}
    timeout tunnel 60s
frontend front
    bind 127.0.0.1:{port}
    default_backend events
backend events
    option httpchk
    http-reuse always
    server one 127.0.0.1:{upstream} check inter 100ms fall 1 rise 1
"""

HAPROXY_TCP = """
defaults
    mode tcp
    timeout connect 5s
    timeout client {idle}
    timeout server {idle}
frontend front
    bind 127.0.0.1:{port}
    default_backend redis
backend redis
    server one {upstream}
"""


def program(name: str) -> str:
    """Return the path of a program; a missing one fails the test if ALL_TESTS is set, else it skips the test."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        (pytest.fail if "ALL_TESTS" in os.environ else pytest.skip)(f"{name} is not installed")
    return found


@contextmanager
def nginx(upstream: int, prefix: str = "", *, idle: str = "60s", upgrades: bool = True) -> Iterator[str]:
    """Run nginx with the usual snippet for WebSockets in front of a port; yields its base URL.

    With a prefix, nginx serves only paths below it, and strips it. It ends answers that are `idle`. Without `upgrades`,
    it speaks HTTP/1.0 to the service, as by default.
    """
    command = [program("nginx"), "-e", "stderr", "-p", "{folder}", "-c", "{folder}/config"]
    values = {"prefix": prefix, "strip": "/" if prefix else "", "idle": idle, "upgrade": UPGRADE if upgrades else ""}
    with _proxy(NGINX, upstream, command, **values) as url:
        yield url


@contextmanager
def haproxy(upstream: int, *, idle: str = "60s") -> Iterator[str]:
    """Run HAProxy with its default health check in front of a port; it ends what is `idle`. Yields its base URL."""
    with _proxy(HAPROXY, upstream, [program("haproxy"), "-db", "-f", "{folder}/config"], idle=idle) as url:
        yield url


@contextmanager
def haproxy_tcp(upstream: str, idle: str) -> Iterator[int]:
    """Run HAProxy in front of an address or socket; it cuts connections that are `idle`. Yields its port."""
    command = [program("haproxy"), "-db", "-f", "{folder}/config"]
    with _proxy(HAPROXY_TCP, upstream, command, idle=idle) as url:
        yield int(url.rpartition(":")[2])


@contextmanager
def _proxy(config: str, upstream: int | str, command: list[str], **values: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="proxy-") as folder:
        port = _free_port()
        Path(folder, "config").write_text(config.format(folder=folder, port=port, upstream=upstream, **values))
        output = Path(folder, "output")
        with output.open("wb") as log:
            arguments = [part.format(folder=folder) for part in command]
            with processes.running(arguments, stdout=log, stderr=subprocess.STDOUT) as process:
                wait_until(lambda: _answers(port) or process.poll() is not None)
                assert process.poll() is None, output.read_text()
                yield f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as claim:
        claim.bind(("127.0.0.1", 0))
        port: int = claim.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0

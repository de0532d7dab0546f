"""Tests of the image: built from the Containerfile, run read-only without capabilities, and drained by SIGTERM.

The bases are made of Debian's own packages: one with pip to build on, one with nothing but Python to run on: no shell,
no package manager. They stay in the machine's container storage, so that a second run is quicker.
"""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import processes
from tests.k8s.tools import ALL_TESTS, ROOT, run, tool
from tests.system.client import connected
from tests.waiting import wait_until

# These tests need a minute or two, network access, and disk space for images.
_ASKED_FOR = pytest.mark.skipif(not ALL_TESTS, reason="the image is built only if ALL_TESTS is set, as .ci/run does")
pytestmark = [pytest.mark.system, _ASKED_FOR]

SUITE = "trixie"  # the Debian whose Python is the 3.13 of the Containerfile's defaults
BASE = ["base-files", "netbase", "ca-certificates", "python3-minimal", "libpython3-stdlib"]
PACKAGES = {"build": [*BASE, "python3", "python3-pip", "dash", "coreutils"], "run": BASE}
IMAGE = "localhost/event-broadcaster-test"
# Where this machine configures package downloads; the image does not contain it.
FETCHING = ("/etc/pip.conf", "/etc/ssl/certs", "/usr/local/share/ca-certificates")


def debian(name: str) -> str:
    """Return the path of a program from the Debian package of the same name."""
    return tool(name, f"Debian's package {name}")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the image and return its name."""
    for name in ("buildah", "podman", "runc", "mmdebstrap"):
        debian(name)
    if os.geteuid() != 0:
        pytest.skip("only root may make base images")
    with ThreadPoolExecutor() as pool:
        list(pool.map(make_base, PACKAGES, repeat(tmp_path_factory.mktemp("bases"))))
    trial = tried(inside(f"{IMAGE}-run", "-c", "", entrypoint="python3"))
    if trial.returncode:
        pytest.skip(f"this machine runs no containers: {trial.stderr}")
    bases = [f"--build-arg={base.upper()}_IMAGE={IMAGE}-{base}" for base in PACKAGES]
    mounts = [f"--volume={path}:{path}:ro" for path in FETCHING if Path(path).exists()]
    run("buildah", "build", "--isolation=chroot", "--layers=false", *bases, *mounts, "--tag", IMAGE, ROOT, timeout=300)
    return IMAGE


def make_base(name: str, folder: Path) -> None:
    """Build one of the base images if it does not exist."""
    if run("buildah", "images", "--filter", f"reference={IMAGE}-{name}", "--quiet"):
        return
    archive = folder / f"{name}.tar"
    packages = ",".join(PACKAGES[name])
    run("mmdebstrap", "--quiet", "--variant=extract", f"--include={packages}", SUITE, archive, timeout=300)
    container = run("buildah", "from", "scratch").strip()
    run("buildah", "add", container, archive, "/")
    run("buildah", "commit", "--rm", container, f"{IMAGE}-{name}")


def inside(image: str, *arguments: str, entrypoint: str = "", **environ: str) -> list[str]:
    """Return the command that runs the image as Kubernetes would: without capabilities, on a read-only file system."""
    # podman's defaults need more rights than a sandboxed machine has.
    limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
    command = ["podman", "--runtime=runc", "run", "--rm", "--network=host", "--read-only", "--read-only-tmpfs=false"]
    command += ["--cap-drop=ALL", "--security-opt=no-new-privileges", *limits]
    command += [f"--entrypoint={entrypoint}"] if entrypoint else []
    return [*command, *(f"--env={name.upper()}={value}" for name, value in environ.items()), image, *arguments]


def tried(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that may fail, and return its result."""
    return processes.run(command)


@contextmanager
def redis_on(port: int, folder: Path) -> Iterator[str]:
    """Start a Redis server that containers can reach, and yield its URL."""
    binary = tool("redis-server", "Debian's package redis-server")
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with processes.running(command, stdout=subprocess.DEVNULL):
        yield f"redis://127.0.0.1:{port}/0"


def podman(*arguments: str) -> str:
    """Run a podman command and return its output."""
    return run("podman", "--runtime=runc", *arguments)


@contextmanager
def running(name: str, image: str, log: Path, **environ: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the service in a container; its log goes to a file, and podman exits with its status."""
    command = inside(image, **environ)
    command.insert(command.index("--rm"), f"--name={name}")
    with log.open("wb") as file, processes.running(command, stderr=file) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                podman("rm", "--force", "--time=0", name)


async def test_serves_and_drains(image: str, tmp_path: Path, unused_ports: tuple[int, int]) -> None:
    """Read-only, unprivileged and as PID 1, the service works with a real Redis and drains on SIGTERM."""
    port, redis_port = unused_ports
    name, log = f"event-broadcaster-test-{os.getpid()}", tmp_path / "log"
    settings = {"port": str(port), "host": "127.0.0.1", "drain_seconds": "1"}
    with redis_on(redis_port, tmp_path) as url, running(name, image, log, redis_url=url, **settings) as process:
        base = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or _ready(base), 60)
        assert process.poll() is None, log.read_text()
        assert [_status(f"{base}{path}") for path in ("/console", "/client.js")] == [200, 200]
        _, *processes = podman("top", name, "huser", "user", "pid", "args").splitlines()
        assert [" ".join(line.split()) for line in processes] == ["65532 65532 1 python3 -m handlers serve"]
        writable = "import os; print([path for path, *_ in os.walk('/') if path[:5] not in ('/proc', '/dev/', '/dev') "
        writable += "and os.access(path, os.W_OK)])"
        assert await asyncio.to_thread(podman, "exec", name, "python3", "-c", writable) == "[]\n", "no /tmp either"
        async with connected(f"ws://127.0.0.1:{port}/ws/events") as client:
            await client.take(type="connected")
            demo = ("python3", "-m", "handlers", "demo", "--count", "1", "--url", base)
            await asyncio.to_thread(podman, "exec", name, *demo)
            await client.take(sequence=1)
            # In a thread: it may take seconds, and a client that does not answer its close within 5 s is aborted.
            await asyncio.to_thread(podman, "kill", "--signal=TERM", name)
            await client.take(type="system.shutdown")
            code, _ = await client.closed()
        # Together: a close code of 1006 is an error of the service only if it ended with status 0 and was not killed.
        assert (code, await asyncio.to_thread(process.wait, 30)) == (1012, 0), log.read_text()


def test_asks_for_redis(image: str) -> None:
    """The image has no embedded Valkey; without REDIS_URL it exits with status 2 and one line of explanation."""
    ended = tried(inside(image))
    assert ended.returncode == 2
    assert "set REDIS_URL" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_is_small(image: str) -> None:
    """The image adds at most 100 MB to its base, including byte code."""
    code = "import pathlib; print(sum(p.stat().st_size for p in pathlib.Path('/app').rglob('*') if p.is_file()))"
    assert 10e6 < int(run(*inside(image, "-c", code, entrypoint="python3"))) <= 100e6


def test_needs_no_shell(image: str) -> None:
    """The image contains no shell, pip or compiler; its base in these tests has no shell either."""
    assert tried(inside(image, "-c", "true", entrypoint="sh")).returncode in (126, 127)
    assert "No module named 'pip'" in tried(inside(image, "-c", "import pip", entrypoint="python3")).stderr
    found = "import os; print(*(p for d in ('/usr/bin', '/app') for p in os.listdir(d) if p in ('cc', 'gcc', 'bin')))"
    assert tried(inside(image, "-c", found, entrypoint="python3")).stdout.strip() == ""


def test_holds_the_lock(image: str) -> None:
    """The image contains exactly the locked packages, in the locked versions, and the project itself."""
    code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions(path=['/app'])))"
    held = {_plain(line) for line in run(*inside(image, "-c", code, entrypoint="python3")).split()}
    locked = (ROOT / ".locks/runtime.txt").read_text()
    wanted = {
        _plain(requirement)
        for requirement, marker in re.findall(r"^(\S+==\S+)( ; .*)? \\$", locked, re.MULTILINE)
        if "win32" not in marker
        and "python_full_version < '3.11" not in marker
        and "python_version < '3.1" not in marker
    }
    assert held - {item for item in held if item.startswith("event-broadcaster==")} == wanted


def test_is_compiled_and_owned_by_root(image: str) -> None:
    """Every module has byte code that is not checked against its source, and the service's user can write nothing."""
    code = """
import importlib.util, json, os, pathlib
missing, checked, writable = [], [], []
for path in pathlib.Path("/app").rglob("*"):
    if os.access(path, os.W_OK) or path.stat().st_uid != 0:
        writable.append(str(path))
    if path.suffix == ".py":
        compiled = pathlib.Path(importlib.util.cache_from_source(path))
        if not compiled.exists():
            missing.append(str(path))
        elif compiled.read_bytes()[4:8] != bytes([1, 0, 0, 0]):
            checked.append(str(path))
print(json.dumps([missing, checked, writable]))
"""
    missing, checked, writable = json.loads(run(*inside(image, "-c", code, entrypoint="python3")))
    assert (missing, checked, writable) == ([], [], [])


def test_says_what_it_is(image: str) -> None:
    """The configuration of the image has user, command, port and labels."""
    config: dict[str, Any] = json.loads(podman("image", "inspect", image))[0]["Config"]
    assert config["User"] == "65532:65532"
    assert (config["Entrypoint"], config["Cmd"]) == (["python3", "-m", "handlers"], ["serve"])
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert {"title", "description", "licenses", "version", "revision"} <= set(labels)
    assert labels["title"] == "event-broadcaster"


def _status(url: str) -> int:
    return httpx.get(url, verify=False, trust_env=False).status_code


def _ready(base: str) -> bool:
    try:
        return httpx.get(f"{base}/health/ready", verify=False, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _plain(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"

"""A replica of the first edition beside a new one, as in a rolling upgrade."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.system.fault_environment import FaultEnvironment
from tests.system.replica import ROOT

FIRST_EDITION = "1a76376"


@pytest.fixture
def first_edition(tmp_path: Path) -> Path:
    """The tree of the first edition; skips where Git or the commit is missing."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git on the PATH")
    archive = subprocess.run(
        [git, "-C", ROOT, "archive", FIRST_EDITION, "kernel", "handlers", "telemetry", "pyproject.toml"],
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        pytest.skip(f"Git does not have the commit {FIRST_EDITION} here")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path


async def test_nothing_is_lost_beside_the_first_edition(env: FaultEnvironment, first_edition: Path) -> None:
    """Replicas of both editions publish, and begin a new epoch: every client gets every event, once and in order."""
    (old,) = await env.start_replicas(root=first_edition)
    await env.publish(old, 5)
    _, new = await env.start_replicas()
    await env.connect_clients()
    async with env.load(0.005) as producers:
        await env.wait_until_accepted(producers, 60)
    before = await env.wait_until_delivered()
    env.check_unbroken()
    assert "invalid or out-of-sequence" not in new.log
    env.server.link.flushall()
    await env.wait_until_healthy()
    for replica in (new, old):
        await env.publish(replica, 3)
    assert await env.wait_until_delivered() != before
    await env.check_history()

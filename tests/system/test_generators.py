"""Clients that code generators make from the OpenAPI document compile, publish, and read receipts and problems."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.system.client import connected
from tests.system.producers import KINDS
from tests.system.replica import ROOT, Replica

SOURCES = Path(__file__).parent / "generators"
TOOLS = ROOT / ".generators"

# The flags of tests/system/generators/install, so that what it compiled is used. Nothing is downloaded.
ENVIRONMENT = os.environ | {
    "PATH": f"{TOOLS / 'bin'}:{os.environ['PATH']}",
    "CGO_ENABLED": "0",
    "GOFLAGS": "'-gcflags=all=-N -l'",
    "GOPROXY": "off",
}


def tool(path: str) -> Path:
    """Return the path of a tool; a missing one fails the test if ALL_TESTS is set, else it skips the test."""
    found = TOOLS / path
    if not found.exists():
        missing = f"{path} is missing; run tests/system/generators/install"
        (pytest.fail if "ALL_TESTS" in os.environ else pytest.skip)(missing)
    return found


def run(folder: Path, *command: str | Path) -> str:
    """Run a program in a folder and return its output; if it fails, the test fails with that output."""
    done = processes.run(command, cwd=folder, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def typescript(folder: Path, url: str) -> str:
    """Generate types with openapi-typescript, check a program that uses them with openapi-fetch, and run it."""
    generate, compile_ = tool("node_modules/.bin/openapi-typescript"), tool("node_modules/.bin/tsc")
    (folder / "node_modules").symlink_to(TOOLS / "node_modules")
    run(folder, generate, "openapi.json", "-o", "schema.ts")
    run(folder, compile_)
    return run(folder, tool("bin/node"), "publish.ts", url)


def go(folder: Path, url: str) -> str:
    """Generate a client with oapi-codegen, compile it with a program that uses it, and run that."""
    run(folder, tool("bin/oapi-codegen"), "-config", "config.yaml", "openapi.json")
    run(folder, tool("bin/go"), "build", "-o", "publish", ".")
    return run(folder, folder / "publish", url)


@pytest.mark.parametrize("generated", [typescript, go])
async def test_generated_client(generated: Callable[[Path, str], str], replica: Replica, tmp_path: Path) -> None:
    """A generated client compiles, publishes each type alone and in a batch, and reads receipts and a problem document.

    The events arrive in order, under the sequence numbers of the receipts, and with the types of their routes.
    """
    folder = shutil.copytree(SOURCES / generated.__name__, tmp_path / "program")
    (folder / "openapi.json").write_bytes(replica.get("/schema/openapi.json").content)

    async with connected(replica.websocket()) as client:
        hello = await client.next()
        answers: dict[str, Any] = json.loads(generated(folder, replica.url))
        await client.reached(answers["sequences"][-1])

    assert [event["type"] for event in client.events] == [*KINDS, *KINDS]
    assert client.numbers == answers["sequences"]
    assert set(answers["epochs"]) == {hello["epoch"]}
    alone, batched = client.events[: len(KINDS)], client.events[len(KINDS) :]
    assert [event["data"] for event in alone] == [event["data"] for event in batched]
    assert alone[KINDS.index("detection.new")]["data"]["confidence"] == 0.94
    assert alone[KINDS.index("worker_status")]["data"]["metadata"]["gpu"] == "cuda:0"
    assert answers["problem"]["status"] == 400
    assert answers["problem"]["field"] == "risk_score"
    assert "0 to 100" in answers["problem"]["message"]

"""The package of client.js: its size, its types, and what `npm pack` and the wheel contain."""

import asyncio
import gzip
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from tests import processes
from tests.handlers.browser.scripted_server import ScriptedServer, event, hello
from tests.javascript import CLIENT, ROOT, TOOLS, find_node, missing

MOST_BYTES = 8 * 1024
FILES = ["client.d.ts", "client.js", "package.json"]

# A program that uses every option, method and message. `@ts-expect-error` fails if the line below it has no error.
PROGRAM = """
import { connect, type Message, type Position, type Status, type Stream } from "./client.js";

const stream: Stream = connect("ws://127.0.0.1:8000/ws/events", {
  events: ["alert.*"], token: async () => "t", apiKey: "k", resume: "session", transport: "auto",
});
connect(new URL("http://127.0.0.1"), { resume: { epoch: "e", sequence: 1 }, token: "t", transport: "sse" }).close();
stream.addEventListener("status", ({ detail }) => console.log((detail satisfies Status).state, detail.delay));
stream.addEventListener("gap", ({ detail }) => console.log(detail.to - detail.from));
stream.addEventListener("error", ({ detail }) => console.log(detail.error, detail.details));

function text(message: Message): string {
  switch (message.type) {
    case "gap":
      return "lost";
    default:
      return message.type;
  }
}

for await (const message of stream) {
  console.log(text(message));
  if ("requires_ack" in message && message.requires_ack) stream.ack(message);
  const position: Position | null = stream.position;
  console.log(position?.epoch, position?.sequence, stream.status.state);
}
stream.subscribe(["event"]);
stream.unsubscribe();
// @ts-expect-error
connect("ws://127.0.0.1", { transport: "carrier pigeon" });
// @ts-expect-error
stream.subscribe("event");
"""


def test_size() -> None:
    """The module has at most 8 KiB compressed, and imports nothing."""
    assert len(gzip.compress(CLIENT.read_bytes(), 9)) <= MOST_BYTES
    assert not re.search(r"^\s*(import|export .* from)\b|\bimport\(|require\(", CLIENT.read_text(), re.MULTILINE)
    assert "ependencies" not in (CLIENT.parent / "package.json").read_text()


def test_version() -> None:
    """The package has the version of the service."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert json.loads((CLIENT.parent / "package.json").read_text())["version"] == project["version"]


def test_npm_package(tmp_path: Path) -> None:
    """`npm pack` makes a package of the three files, from which Node.js imports `connect`."""
    node = Path(find_node())
    npm = node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [
        node,
        npm,
        "pack",
        "--json",
        "--offline",
        "--pack-destination",
        tmp_path,
        f"--cache={tmp_path / 'cache'}",
    ]
    packed = processes.run(command, cwd=CLIENT.parent)
    assert packed.returncode == 0, packed.stderr
    (package,) = json.loads(packed.stdout)
    assert package["name"] == "@event-broadcaster/client"
    assert sorted(file["path"] for file in package["files"]) == FILES
    home = tmp_path / "node_modules" / "@event-broadcaster"
    home.mkdir(parents=True)
    shutil.unpack_archive(tmp_path / package["filename"], tmp_path, filter="data")
    (tmp_path / "package").rename(home / "client")
    program = 'import { connect } from "@event-broadcaster/client"; console.log(typeof connect);'
    (tmp_path / "program.mjs").write_text(program)
    assert processes.run([node, "program.mjs"], cwd=tmp_path).stdout == "function\n"


def test_types(tmp_path: Path) -> None:
    """A program that uses every option, method and message compiles under `tsc --strict`, and wrong uses do not."""
    compiler = TOOLS / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        missing("no TypeScript; run tests/system/generators/install")
    for name in FILES:
        shutil.copy(CLIENT.parent / name, tmp_path)
    (tmp_path / "program.ts").write_text(PROGRAM)
    options = ["--strict", "--noEmit", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler"]
    # what a browser has, and nothing of Node.js
    options += ["--lib", "es2022,dom,dom.iterable"]
    compiled = processes.run([find_node(), compiler, *options, "program.ts"], cwd=tmp_path)
    assert compiled.stdout == ""
    assert compiled.returncode == 0


async def test_readme(tmp_path: Path) -> None:
    """The listener in the README prints events, says that some are lost, and sends acks."""
    (source,) = re.findall(r"```js\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert source.count("\n") <= 10
    async with ScriptedServer() as server:
        address = source.replace("http://127.0.0.1:8000/client.js", CLIENT.as_uri())
        address = address.replace("ws://127.0.0.1:8000/ws/events", server.url)
        (tmp_path / "listener.mjs").write_text(address)
        with processes.running([find_node(), tmp_path / "listener.mjs"], stdout=subprocess.PIPE, text=True) as program:
            peer = await server.peer()
            await peer.send(hello(), event(11, requires_ack=True), {"type": "gap", "from": 12, "to": 13}, event(14))
            await peer.gets({"type": "ack", "data": {"sequence": 11}})
            assert program.stdout is not None
            lines = [await asyncio.to_thread(program.stdout.readline) for _ in range(5)]
    assert lines[0:2] == ["connecting \n", "live \n"]
    assert lines[2].startswith("11 alert_deleted {")
    assert lines[3].startswith("events are lost: {")
    assert lines[4].startswith("14 alert_deleted {")


def test_wheel(tmp_path: Path) -> None:
    """The wheel has all files for browsers."""
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for name in ("kernel", "handlers", "telemetry"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        found = {name for name in wheel.namelist() if name.startswith("handlers/browser/")}
        assert found == {str(path.relative_to(ROOT)) for path in CLIENT.parent.rglob("*.*")}
        assert wheel.read("handlers/browser/client.js") == CLIENT.read_bytes()

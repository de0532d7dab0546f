"""The files for browsers: headers, caching, the redirect of `/`, and what the console's files must not contain."""

import re
import shutil
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient

from handlers.routes.browser_files import browser_routes
from handlers.routes.root import root_route
from handlers.settings import Settings
from tests import processes
from tests.system.replica import ROOT

FOLDER = ROOT / "handlers" / "browser" / "console"
FILES = sorted(each.name for each in FOLDER.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
PAGE = (FOLDER / "index.html").read_text()
CONSOLE = ["/console", "/console/settings.json", *(f"/console/{name}" for name in FILES)]
CLIENT = ["/client.js", "/client.d.ts"]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

Client = AsyncTestClient[Litestar]


def client_of(**settings: Any) -> Client:
    """Return a client of the files alone; it does not follow redirects."""
    chosen = Settings(**settings)
    app = Litestar([root_route(chosen), *browser_routes(chosen)], openapi_config=None, logging_config=None)
    return AsyncTestClient(app, base_url="http://127.0.0.1:8000")


@pytest.fixture
async def files() -> AsyncIterator[Client]:
    """A client of the files with the default settings."""
    async with client_of() as client:
        yield client


@pytest.mark.parametrize("path", CONSOLE)
async def test_console_headers(files: Client, path: str) -> None:
    """Each file of the console may load only what its own service serves, and no page may frame or read it."""
    answer = await files.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/console", "text/html; charset=utf-8"),
        ("/console/console.css", "text/css; charset=utf-8"),
        ("/console/console.js", "text/javascript; charset=utf-8"),
        ("/console/icon.svg", "image/svg+xml"),
        ("/console/settings.json", "application/json"),
        ("/client.js", "text/javascript; charset=utf-8"),
        ("/client.d.ts", "application/typescript; charset=utf-8"),
    ],
)
async def test_media_types(files: Client, path: str, media_type: str) -> None:
    """Browsers refuse modules and styles of other types."""
    assert (await files.get(path)).headers["content-type"] == media_type


@pytest.mark.parametrize("path", CLIENT)
async def test_client_headers(files: Client, path: str) -> None:
    """Pages of all origins may import the client and its types."""
    answer = await files.get(path, headers={"Origin": "https://example.org"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "content-security-policy" not in answer.headers


@pytest.mark.parametrize("path", ["/console", "/client.js"])
async def test_not_modified(files: Client, path: str) -> None:
    """A browser that has the newest file is told so, with the same headers and without the file."""
    first = await files.get(path)
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await files.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert again.headers.get("access-control-allow-origin") == first.headers.get("access-control-allow-origin")
    assert (await files.get(path, headers={"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize("path", ["/", "/console", "/client.js"])
@pytest.mark.parametrize("console", ["on", "off"])
async def test_head(path: str, console: str) -> None:
    """HEAD is answered as GET is, without content."""
    async with client_of(console=console) as files:
        get, head = [await files.request(method, path, follow_redirects=False) for method in ("GET", "HEAD")]
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers.get("location") == get.headers.get("location")
        assert head.headers.get("etag") == get.headers.get("etag")


@pytest.mark.parametrize(("prefix", "location"), [("", "/console"), ("/x/y", "/x/y/console")])
async def test_redirect(prefix: str, location: str) -> None:
    """`/` leads to the console, below the prefix that a proxy strips."""
    async with client_of(root_path=prefix) as files:
        answer = await files.get("/", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, location)


async def test_no_slash_at_the_end(files: Client) -> None:
    """`/console/` leads to `/console`, below any prefix: its relative links would lead elsewhere."""
    answer = await files.get("/console/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "../console")


async def test_console_off() -> None:
    """Without the console, its paths and `/` do not exist; the client stays."""
    async with client_of(console="off") as files:
        statuses = {path: (await files.get(path)).status_code for path in ["/", *CONSOLE, *CLIENT]}
    assert statuses == dict.fromkeys(["/", *CONSOLE], 404) | dict.fromkeys(CLIENT, 200)


async def test_settings() -> None:
    """The console learns the template of traces, and no other setting."""
    template = "https://traces.example.org/trace/{trace_id}"
    async with client_of(trace_url=template, api_keys=("secret",), websocket_token="secret") as files:
        assert (await files.get("/console/settings.json")).json() == {"trace_url": template}


def test_links_are_relative() -> None:
    """The page works under any prefix: its links name files beside it, and each of them is served."""
    links = re.findall(r'\b(?:href|src)="([^"]*)"', PAGE)
    assert links
    assert {f"/{link}" for link in links} <= {*CONSOLE, "/schema"}
    for name in SCRIPTS:
        imports = re.findall(r'^import .* from "([^"]*)";$', (FOLDER / name).read_text(), re.MULTILINE)
        assert {each.removeprefix("./") for each in imports} <= {*SCRIPTS, "../client.js"}


def test_nothing_inline() -> None:
    """The page has no script, style or handler of its own, which the policy would refuse."""
    assert re.findall(r"<script\b[^>]*>(?=[^<])", PAGE) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", PAGE, re.IGNORECASE) == []


@pytest.mark.parametrize("name", FILES)
def test_no_foreign_host(name: str) -> None:
    """No file of the console names a host; XML namespaces are names, not addresses."""
    text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?://|wss?://|[\"'(]//\w", text) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_only_text(name: str) -> None:
    """Data is set as text: nothing parses it as HTML or runs it."""
    markup = (
        r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
        r"|\beval\(|new Function|setTimeout\([\"'`]"
    )
    assert re.findall(markup, (FOLDER / name).read_text()) == []


def test_packaged(tmp_path: Path) -> None:
    """The wheel has every file for browsers, and no pictures or tests."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("kernel", "handlers", "telemetry"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests" / "pictures").mkdir(parents=True)
    (tmp_path / "tests" / "pictures" / "console.png").touch()
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    done = processes.run([sys.executable, "-c", build], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"handlers/browser/console/{name}" for name in FILES} <= names
    assert {"handlers/browser/client.js", "handlers/browser/client.d.ts"} <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith(".png")]

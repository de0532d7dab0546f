"""A page in Chromium without a window, driven over the DevTools protocol, with streams of client.js in it."""

import asyncio
import itertools
import json
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests import javascript, processes
from tests.javascript import Listener
from tests.system.proxies import program
from tests.system.replica import PATIENCE
from tests.waiting import eventually

__all__ = ["Page", "open_page"]

_COMMANDS: Final = Path(javascript.__file__).with_suffix(".mjs")
_OPTIONS: Final = ("--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--remote-debugging-port=0")

# The page takes commands by `run`, and reports by the function that DevTools adds. The last reports of a page that is
# loaded again may be lost, so the next page repeats them.
_PAGE: Final = """<!DOCTYPE html><title>Listener</title><script type="module">
import { connect } from "SERVICE/client.js";
COMMANDS
let { number, last } = JSON.parse(sessionStorage.getItem("reports") ?? '{"number":0,"last":[]}');
last.forEach((text) => report(text));
globalThis.run = streams(connect, (message) => {
  const text = JSON.stringify({ ...message, number: ++number });
  last = [...last.slice(-100), text];
  report(text);
});
addEventListener("pagehide", () => sessionStorage.setItem("reports", JSON.stringify({ number, last })));
</script>"""


class Page:
    """An open page.

    `listeners` are its streams by name, which may be started again after a reload.

    `errors` are the exceptions that nothing caught, and `log` is what the browser has noted.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._reported = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.ensure_future(self._read())
        self.listeners: dict[str, Listener] = {}
        self.errors: list[str] = []
        self.log: list[str] = []

    async def devtools(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(PATIENCE):
            message = await answer
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression."""
        answer = await self.devtools("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def load(self, method: str, **parameters: object) -> None:
        """Navigate or reload by this method, and wait until the page takes commands."""
        await self.evaluate("globalThis.run = undefined")
        await self.devtools(method, **parameters)
        await eventually(self._takes_commands, PATIENCE)

    async def command(self, do: str, **values: object) -> None:
        """Run a command of javascript.mjs."""
        await self.evaluate(f"run({json.dumps({'do': do, **values})})")

    async def close(self) -> None:
        """End the connection to it."""
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def _takes_commands(self) -> bool:
        return await self.evaluate("typeof globalThis.run") == "function"

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message["method"] == "Runtime.bindingCalled":
                report = json.loads(message["params"]["payload"])
                if report["number"] > self._reported:
                    self._reported = report["number"]
                    self.listeners[report["name"]].take(report)
            elif message["method"] == "Log.entryAdded":
                self.log.append(message["params"]["entry"]["text"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"]["exception"]["description"])


@asynccontextmanager
async def open_page(service: str, folder: Path) -> AsyncIterator[Page]:
    """Open a page of another origin that imports /client.js from a service; the browser keeps its files in `folder`."""
    command = [program("chromium"), *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    source = _PAGE.replace("SERVICE", service).replace("COMMANDS", _COMMANDS.read_text())
    pages = _Pages(source.encode())
    with processes.running(command, stderr=subprocess.DEVNULL), pages:
        port_file = folder / "DevToolsActivePort"
        await eventually(lambda: port_file.exists() and "\n" in port_file.read_text(), 2 * PATIENCE)
        port = port_file.read_text().split()[0]
        async with httpx.AsyncClient(trust_env=False) as http:
            targets = (await http.get(f"http://127.0.0.1:{port}/json/list")).json()
        (address,) = [target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"]
        async with connect(address, max_size=None, proxy=None) as socket:
            page = Page(socket)
            try:
                for domain in ("Page", "Runtime", "Log"):
                    await page.devtools(f"{domain}.enable")
                await page.devtools("Runtime.addBinding", name="report")
                await page.load("Page.navigate", url=f"http://127.0.0.1:{pages.server_address[1]}/")
                yield page
                assert page.errors == []
            finally:
                await page.close()


class _Pages(ThreadingHTTPServer):
    """Serves one page on a loopback port."""

    daemon_threads = True

    def __init__(self, page: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.page = page
        self._thread = threading.Thread(target=self.serve_forever, args=[0.05])

    def __enter__(self) -> "_Pages":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: _Pages

    def do_GET(self) -> None:
        """Send the page."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.server.page)

    def log_message(self, *_: object) -> None:
        """Log nothing."""

"""Chromium, driven by the DevTools protocol: pages are used as a person does, with the mouse or the keyboard alone."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests import processes
from tests.waiting import wait_until

__all__ = ["Page", "browser", "opened"]

PATIENCE: Final = 20.0
FLAGS: Final = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--remote-debugging-port=0"),
    *("--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"),
)
# key: the code of the physical key, its number on Windows, and what it types
KEYS: Final = {
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    " ": ("Space", 32, " "),
    "End": ("End", 35, ""),
    "Home": ("Home", 36, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "a": ("KeyA", 65, "a"),
}
CONTROL: Final = 2
SHIFT: Final = 8


class Page:
    """A tab. `complaints` are the errors and warnings of its console, such as exceptions and refused resources."""

    def __init__(self, link: ClientConnection) -> None:
        self.complaints: list[str] = []
        self._link = link
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()

    async def run(self) -> None:
        """Read what the browser sends."""
        async for text in self._link:
            message = json.loads(text)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] in ("error", "warning"):
                entry = message["params"]["entry"]
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
            elif message["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
            elif message["method"] == "Runtime.consoleAPICalled" and message["params"]["type"] in ("error", "warning"):
                self.complaints.append(json.dumps(message["params"]["args"]))

    async def call(self, method: str, **values: Any) -> Any:
        """Call a method of the DevTools protocol, and return its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._link.send(json.dumps({"id": number, "method": method, "params": values}))
        answer = await asyncio.wait_for(self._answers[number], 2 * PATIENCE)
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript; of a promise, its result."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            pytest.fail(f"{expression}\n{found['exceptionDetails']['exception']['description']}")
        return found["result"].get("value")

    async def until(self, expression: str, seconds: float = PATIENCE) -> Any:
        """Wait until an expression is true, and return its value."""
        return await self.evaluate(
            f"""new Promise((done, fail) => {{
                const end = Date.now() + {1000 * seconds};
                const ask = () => {{
                    const value = ({expression});
                    if (value) done(value);
                    else if (end < Date.now()) fail(new Error(document.body.innerText));
                    else setTimeout(ask, 20);
                }};
                ask();
            }})"""
        )

    async def text(self, selector: str) -> str:
        """Return the text of an element."""
        found: str = await self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")
        return found

    async def open(self, url: str, ready: str) -> None:
        """Go to a page, and wait until an expression is true there."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), PATIENCE)
        await self.until(ready)

    async def show(self, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Set the size of the page and its colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def click(self, selector: str) -> None:
        """Click the middle of an element, which must be visible and not covered by another one."""
        x, y = await self.until(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element?.scrollIntoView({{ block: "nearest" }});
                const box = element?.getBoundingClientRect();
                if (!box?.width || element.disabled) return null;
                const place = [box.x + box.width / 2, box.y + box.height / 2];
                const top = document.elementFromPoint(...place);
                return element.contains(top) || top?.contains(element) ? place : null;
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def press(self, *keys: str, modifiers: int = 0) -> None:
        """Press keys, one after the other."""
        for key in keys:
            code, number, typed = KEYS[key]
            values = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
            text = {"text": typed} if typed and not modifiers & CONTROL else {}
            await self.call("Input.dispatchKeyEvent", type="keyDown", **values, **text)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    async def tab_to(self, name: str, *, back: bool = False) -> None:
        """Press the tab key until the element with this id has the focus, and check that the focus can be seen."""
        for _ in range(80):
            await self.press("Tab", modifiers=SHIFT if back else 0)
            if await self.evaluate("document.activeElement.id") == name:
                break
        else:
            pytest.fail(f"the tab key does not reach {name}")
        style = "getComputedStyle(document.activeElement)"
        assert await self.evaluate(f"{style}.outlineStyle !== 'none' && parseFloat({style}.outlineWidth) >= 2"), name

    async def type(self, text: str) -> None:
        """Replace the text of the input that has the focus."""
        await self.press("a", modifiers=CONTROL)
        if text:
            await self.call("Input.insertText", text=text)
        else:
            await self.evaluate("document.execCommand('delete')")

    async def picture(self) -> str:
        """Return a picture of what is visible, a PNG in base64."""
        shot: str = (await self.call("Page.captureScreenshot", format="png"))["data"]
        return shot


@contextmanager
def browser(folder: Path) -> Iterator[str]:
    """Run Chromium and yield the URL of its DevTools; without it, fail the test if ALL_TESTS is set, else skip it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        (pytest.fail if "ALL_TESTS" in os.environ else pytest.skip)("no chromium; .ci/run installs it")
    log = folder / "chromium.log"
    with log.open("wb") as file:
        command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        with processes.running(command, stdout=file, stderr=file):
            found = re.compile(r"DevTools listening on ws://([^/]+)/")
            wait_until(lambda: found.search(log.read_text(errors="replace")), PATIENCE)
            match = found.search(log.read_text(errors="replace"))
            assert match
            yield f"http://{match[1]}"


@asynccontextmanager
async def opened(devtools: str) -> AsyncIterator[Page]:
    """Open a tab for the length of a block."""
    async with httpx.AsyncClient(verify=False, trust_env=False, timeout=PATIENCE) as http:
        tab = (await http.put(f"{devtools}/json/new?about:blank")).json()
        try:
            async with connect(tab["webSocketDebuggerUrl"], max_size=None, proxy=None, ping_interval=None) as link:
                page = Page(link)
                reading = asyncio.create_task(page.run())
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                await page.show()
                yield page
            await reading
        finally:
            await http.get(f"{devtools}/json/close/{tab['id']}")

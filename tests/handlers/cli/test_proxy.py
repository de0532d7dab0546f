"""The proxies of tail and demo."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from handlers.__main__ import main
from handlers.cli.demo import run
from handlers.cli.proxy import Proxy, ProxyUnusable, proxy_for
from handlers.cli.tail import follow

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("ws://h/x", {}, None),
        ("ws://h/x", {"http_proxy": PROXY}, Proxy(PROXY, "http_proxy")),
        ("http://h", {"HTTP_PROXY": "proxy.example:3128"}, Proxy(PROXY, "HTTP_PROXY")),
        ("http://h", {"http_proxy": PROXY, "HTTP_PROXY": "http://other"}, Proxy(PROXY, "http_proxy")),
        ("wss://h", {"https_proxy": PROXY, "socks_proxy": "socks5://s"}, Proxy(PROXY, "https_proxy")),
        ("wss://h", {"http_proxy": PROXY}, None),
        ("https://h", {"all_proxy": PROXY}, Proxy(PROXY, "all_proxy")),
        ("ws://h", {"http_proxy": PROXY, "no_proxy": "a, h"}, None),
        ("ws://a.h", {"http_proxy": PROXY, "no_proxy": ".h"}, None),
        ("ws://h", {"http_proxy": PROXY, "NO_PROXY": "*"}, None),
        ("ws://127.0.0.1:8000", {"http_proxy": PROXY, "all_proxy": "socks5://s"}, None),
        ("ws://[::1]:8000", {"http_proxy": PROXY}, None),
        ("http://localhost", {"http_proxy": PROXY, "socks_proxy": "s"}, None),
    ],
)
def test_choice(url: str, environ: dict[str, str], proxy: Proxy | None) -> None:
    """The variable of the scheme counts first; loopback and the hosts of no_proxy are reached directly."""
    assert proxy_for(url, environ) == proxy


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("all_proxy", "socks5h://user:hunter2@h:1080"),
        ("ALL_PROXY", "socks://h"),
        ("socks_proxy", "http://h:1080"),
        ("http_proxy", "https://user:hunter2@h"),
        ("http_proxy", "http://h:port"),
        ("http_proxy", "http://"),
    ],
)
def test_unusable(variable: str, text: str) -> None:
    """A proxy that cannot be used is named with its variable, without its credentials."""
    with pytest.raises(ProxyUnusable) as caught:
        proxy_for("ws://h", {variable: text})
    assert str(caught.value).startswith(f"{variable}: the proxy ")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "command", [["tail", "--url", "ws://events.example"], ["demo", "--url", "http://events.example"]]
)
def test_exit_status(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Such a proxy ends both commands with status 2 and one line."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("all_proxy", "socks5://h:1")
    assert main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("event-broadcaster: all_proxy: the proxy socks5://h:1 cannot be used")


@pytest.fixture
def proxy() -> Iterator[tuple[Proxy, list[str]]]:
    """An HTTP proxy that records the head of each request and refuses it."""
    heads: list[str] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with closing(client):
                heads.append(client.recv(65536).decode())
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield Proxy(f"http://me:p%40ss@127.0.0.1:{listener.getsockname()[1]}", "http_proxy"), heads
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize(
    ("url", "start"),
    [
        ("http://events.example:8000/x", "POST http://events.example:8000/x/broadcast/"),
        ("https://events.example/x", "CONNECT events.example:443 "),
    ],
)
def test_demo(proxy: tuple[Proxy, list[str]], url: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo publishes through the proxy, with its credentials; https:// in a tunnel."""
    assert run(url, rate=0, count=1, seed=1, proxy=proxy[0], emit=print) == 1
    [head] = proxy[1]
    assert head.startswith(start)
    assert "Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in head
    assert "407" in capsys.readouterr().err


@pytest.mark.parametrize(("url", "port"), [("ws://events.example/x", 80), ("wss://events.example/x", 443)])
async def test_tail(proxy: tuple[Proxy, list[str]], url: str, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The tail connects in a tunnel of the proxy, and names the proxy if there is no connection."""
    task = asyncio.create_task(follow(url, proxy=proxy[0], emit=print))
    told = ""
    async with asyncio.timeout(10):
        while not told:
            await asyncio.sleep(0.01)
            told = capsys.readouterr().err
    task.cancel()
    assert proxy[1][0].startswith(f"CONNECT events.example:{port} HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in proxy[1][0]
    assert f"no connection to {url} through the proxy 127.0.0.1:" in told
    assert "407" in told
    assert "ss@" not in told

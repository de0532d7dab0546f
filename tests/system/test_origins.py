"""Web pages of other origins, foreign host names, and the prefix that a proxy strips."""

import asyncio
import html
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests import processes
from tests.system.client import Client, connected
from tests.system.proxies import haproxy, nginx, program
from tests.system.raw_http import HANDSHAKE, raw_http
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

PATH = "/broadcast/alert/deleted"
GOOD = "https://good.example"
EVIL = "https://evil.example"
BODY = {"id": "x"}


@pytest.fixture(scope="module")
def listed(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica with a key that serves two origins."""
    return start_for_module(
        redis_url=valkey,
        redis_event_channel="origins",
        api_keys="first,k/e+y=",
        allowed_origins=f"{GOOD}:443,https://*.example.org,null",
        http_max_body_bytes=1000,
    )


@pytest.fixture(scope="module")
def open_replica(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica on loopback without any credential and without ALLOWED_ORIGINS."""
    return start_for_module(redis_url=valkey, redis_event_channel="origins-open", root_path="/x")


@pytest.fixture(scope="module")
def public(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica without credentials that serves any origin."""
    return start_for_module(redis_url=valkey, redis_event_channel="origins-any", allowed_origins="*")


def preflight(origin: str, headers: str = "content-type,x-api-key") -> dict[str, str]:
    """Return the headers of the preflight that a browser sends before a POST."""
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": headers,
        "Sec-Fetch-Mode": "cors",
    }


@pytest.mark.parametrize("origin", [GOOD, "https://a.example.org", "null"])
async def test_preflight(listed: Replica, origin: str) -> None:
    """A preflight of an allowed origin needs no key (protocol: web pages)."""
    answer = await listed.request("OPTIONS", PATH, headers=preflight(origin, "ce-id, ce-x1,evil,content-type"))
    assert (answer.status_code, answer.content) == (204, b"")
    allowed = "Authorization, X-API-Key, Content-Type, Idempotency-Key, Last-Event-ID, traceparent, tracestate, baggage"
    cors = {name: value for name, value in answer.headers.items() if name.startswith("access-control")}
    assert cors == {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": f"{allowed}, ce-id, ce-x1",
        "access-control-max-age": "7200",
    }
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", [PATH, "/ws/events", "/events/poll", "/state", "//broadcast///event"])
async def test_refused_origin(listed: Replica, path: str) -> None:
    """Another origin gets 403, which names the setting and the value to add; so does its preflight."""
    async with raw_http(listed) as raw:
        for method in (b"GET", b"OPTIONS"):
            lines = b"Host: localhost\r\nOrigin: %s\r\nAccess-Control-Request-Method: GET" % EVIL.encode()
            await raw.send(b"%s %s HTTP/1.1\r\n%s\r\n\r\n" % (method, path.encode(), lines))
            answer = await raw.answer()
            assert answer.status == 403
            assert answer.is_problem
            assert f"add {EVIL} to ALLOWED_ORIGINS" in answer.json["detail"]
            assert answer.headers["vary"] == "Origin"
            assert "access-control-allow-origin" not in answer.headers
    told = f"WARNING .*refused a page of {EVIL}: to serve it, add {EVIL} to ALLOWED_ORIGINS"
    await eventually(lambda: re.search(told, listed.log) is not None, 15)


async def test_errors_are_readable(listed: Replica) -> None:
    """An allowed page can read the answers to its publishes, errors too."""
    good, key = {"Origin": GOOD}, {"X-API-Key": "first"}
    answers = {
        202: await listed.request("POST", PATH, json=BODY, headers=good | key),
        400: await listed.request("POST", PATH, json={}, headers=good | key),
        401: await listed.request("POST", PATH, json=BODY, headers=good),
        404: await listed.request("POST", "/broadcast/nothing", json=BODY, headers=good | key),
        405: await listed.request("GET", PATH, headers=good | key),
        413: await listed.request("POST", PATH, json={"id": "x" * 2000}, headers=good | key),
        415: await listed.request("POST", PATH, content=b"x", headers=good | key),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == GOOD
        assert answer.headers["access-control-expose-headers"] == "Retry-After, Idempotent-Replayed"
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers


async def test_other_requests(listed: Replica) -> None:
    """A request without an Origin gets no CORS headers, and routes outside the list are not checked."""
    plain = await listed.request("POST", PATH, json=BODY, headers={"X-API-Key": "first"})
    health = await listed.request("GET", "/health", headers={"Origin": EVIL})
    assert (plain.status_code, health.status_code) == (202, 200)
    assert not [name for answer in (plain, health) for name in answer.headers if name.startswith("access-control")]


async def test_upgrade(listed: Replica) -> None:
    """An upgrade of another origin is refused with a problem document, and an allowed one is accepted."""
    for origin in (GOOD, "https://b.example.org:443"):
        async with connected(listed.websocket(api_key="first"), origin=origin) as client:
            assert (await client.next())["type"] == "connected"
    async with raw_http(listed) as raw:
        await raw.send(
            b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\nOrigin: %s\r\n%s\r\n" % (EVIL.encode(), HANDSHAKE)
        )
        answer = await raw.answer()
    assert answer.status == 403
    assert answer.is_problem
    assert f"add {EVIL} to ALLOWED_ORIGINS" in answer.json["detail"]


async def test_encoded_key(listed: Replica) -> None:
    """A key with characters that no subprotocol may have is sent as base64url (protocol: websocket)."""
    async with connected(listed.websocket(), subprotocols=["api-key-b64.ay9lK3k9"]) as client:
        assert (await client.next())["type"] == "connected"
        assert client.socket.subprotocol == "api-key-b64.ay9lK3k9"


async def test_any_origin(public: Replica) -> None:
    """`*` serves every page and every host."""
    answer = await public.request("POST", PATH, json=BODY, headers={"Origin": EVIL, "Host": "rebound.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, "*")
    assert "vary" not in answer.headers
    asked = await public.request("OPTIONS", PATH, headers=preflight("null"))
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "*")


async def test_default(open_replica: Replica) -> None:
    """Without credentials and ALLOWED_ORIGINS, loopback pages are served and others refused (protocol: web pages)."""
    for origin, status in (("http://localhost:3000", 202), (EVIL, 403), ("null", 403)):
        answer = await open_replica.request("POST", PATH, json=BODY, headers={"Origin": origin})
        assert answer.status_code == status
    with pytest.raises(InvalidStatus) as refused:
        await Client.open(open_replica.websocket(), origin=EVIL)
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "path", [PATH, "/", "/health", "/health/live", "/metrics", "/schema", "/nothing", "/ws/events"]
)
async def test_foreign_host(open_replica: Replica, path: str) -> None:
    """A foreign name that points to loopback gets 421 on every route (protocol: web pages)."""
    async with raw_http(open_replica) as raw:
        upgrade = HANDSHAKE if path == "/ws/events" else b""
        await raw.send(b"GET %s HTTP/1.1\r\nHost: rebound.example:80\r\n%s\r\n" % (path.encode(), upgrade))
        answer = await raw.answer()
    assert answer.status == 421
    assert answer.is_problem
    assert "add http://rebound.example to ALLOWED_ORIGINS" in answer.json["detail"]


@pytest.mark.parametrize("proxy", [nginx, haproxy])
async def test_through_proxies(open_replica: Replica, proxy: Callable[[int], AbstractContextManager[str]]) -> None:
    """Both proxies pass on Origin and Host, so pages of the proxy's own address are served, and others are refused."""
    with proxy(open_replica.port) as url:
        async with httpx.AsyncClient(trust_env=False, base_url=url) as http:
            for headers, status in (
                ({"Origin": url}, 202),
                ({"Origin": EVIL}, 403),
                ({"Host": "rebound.example"}, 421),
            ):
                assert (await http.post(PATH, json=BODY, headers=headers)).status_code == status
            asked = await http.options(PATH, headers=preflight(url))
            assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, url)
        async with connected(url.replace("http", "ws") + "/ws/events", origin=url) as client:
            assert (await client.next())["type"] == "connected"


async def test_refusals_are_logged_once(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Refusals have one line in the log for each kind, however many there are."""
    replica = start(redis_url=valkey, redis_event_channel=channel)
    for number in range(20):
        await replica.request("POST", PATH, json=BODY, headers={"Origin": f"https://evil-{number}.example"})
        await replica.request("GET", "/health", headers={"Host": f"rebound-{number}.example"})

    def refusals() -> int:
        return sum("ALLOWED_ORIGINS" in line and "refused" in line for line in replica.log.splitlines())

    await eventually(lambda: refusals() == 2)
    replica.stop(tolerate=" WARNING handlers.cors: refused")
    assert refusals() == 2


# -- a proxy that strips a prefix -------------------------------------------------------------------------------------


async def test_root_path(open_replica: Replica) -> None:
    """Behind nginx that strips the prefix, the page, its files and the routes of the document are found."""
    with nginx(open_replica.port, prefix="/x") as base:
        async with httpx.AsyncClient(trust_env=False, base_url=base) as http:
            page = await http.get("/x/schema", headers={"accept": "text/html"})
            links = [html.unescape(link) for link in re.findall(r'(?:href|src|data-url)="(/[^"]*)"', page.text)]
            assert len(links) >= 3
            for link in links:
                assert link.startswith("/x/")
                assert (await http.get(link)).status_code == 200
            document = (await http.get("/x/schema/openapi.json")).json()
            assert document["servers"] == [{"url": "/x"}]
            answer = await http.post(document["servers"][0]["url"] + PATH, json=BODY)
            assert answer.status_code == 202
        async with connected(base.replace("http", "ws") + "/x/ws/events?since=0") as client:
            await client.reached(answer.json()["sequence"])


# -- a browser --------------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><pre id="result"></pre><script>
const service = "SERVICE", socketUrl = service.replace("http", "ws") + "/ws/events", result = {};
const publish = (headers) => fetch(service + "/broadcast/alert/deleted", {
  method: "POST", headers: {"Content-Type": "application/json", "Idempotency-Key": "browser", ...headers},
  body: JSON.stringify({id: "browser"}),
}).then(async (answer) => [answer.status, answer.headers.get("Idempotent-Replayed"), (await answer.json()).status],
        (error) => ["unreadable"]);
const listen = (protocols) => new Promise((resolve) => {
  const socket = new WebSocket(socketUrl, protocols);
  socket.onmessage = (message) => resolve([JSON.parse(message.data).type, socket.protocol]);
  socket.onclose = (closed) => resolve([closed.code]);
});
const stream = (query) => new Promise((resolve) => {
  const source = new EventSource(service + "/events" + query);
  const end = (answer) => { source.close(); resolve(answer); };
  source.addEventListener("connected", (message) => end([JSON.parse(message.data).type]));
  source.onerror = () => end(["error", source.readyState]);
});
const poll = (headers) => fetch(service + "/events/poll?since=0", {headers})
  .then(async (answer) => [answer.status, (await answer.json()).recovered], (error) => ["unreadable"]);
(async () => {
  result.stream = await stream("?api_key=first");
  result.keyless = await stream("");
  result.poll = await poll({"X-API-Key": "first", "Last-Event-ID": "e:0"});
  result.first = await publish({"X-API-Key": "first"});
  result.again = await publish({"X-API-Key": "first", "ce-id": "1"});
  result.unauthorized = await publish({});
  result.socket = await listen(["api-key-b64.ay9lK3k9"]);
  result.json = await listen(["json", "api-key-b64.ay9lK3k9"]);
  result.echoless = await listen(["json"]);
  await fetch("/done", {method: "POST", body: JSON.stringify(result)});
})();
</script>"""


class Pages(ThreadingHTTPServer):
    """Serves one page to a browser on a loopback port, and takes what the page found out."""

    daemon_threads = True

    def __init__(self, page: str) -> None:
        super().__init__(("127.0.0.1", 0), PageHandler)
        self.page = page
        self.result: Any = None
        self.done = threading.Event()
        self.origin = f"http://127.0.0.1:{self.server_address[1]}"


class PageHandler(BaseHTTPRequestHandler):
    """One request."""

    server: Pages

    def do_GET(self) -> None:
        """Send the page."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.server.page.encode())

    def do_POST(self) -> None:
        """Take the result."""
        self.server.result = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def pages() -> Iterator[Pages]:
    """The server of the page."""
    server = Pages("")
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("allowed", [True, False])
async def test_browser(
    start: ReplicaFactory, valkey: str, channel: str, pages: Pages, allowed: bool, tmp_path: Path
) -> None:
    """Chromium lets a page of an allowed origin publish and listen, and one of another origin do neither."""
    replica = start(
        redis_url=valkey,
        redis_event_channel=channel,
        api_keys="first,k/e+y=",
        allowed_origins=pages.origin if allowed else GOOD,
    )
    pages.page = PAGE.replace("SERVICE", replica.url)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-proxy-server",
        f"--user-data-dir={tmp_path}",
    ]
    with processes.running([program("chromium"), *options, f"{pages.origin}/"]):
        assert await asyncio.to_thread(pages.done.wait, 60)
    expected = {
        "stream": ["connected"],
        "keyless": ["error", 2],
        "poll": [200, False],
        "first": [202, None, None],
        "again": [202, "true", None],
        "unauthorized": [401, None, 401],
        "socket": ["connected", "api-key-b64.ay9lK3k9"],
        "json": ["connected", "api-key-b64.ay9lK3k9"],
        "echoless": [1006],
    }
    refused = {name: ["unreadable"] for name in ("first", "again", "unauthorized", "poll")}
    refused |= {name: ["error", 2] for name in ("stream", "keyless")}
    refused |= {name: [1006] for name in ("socket", "json", "echoless")}
    assert pages.result == (expected if allowed else refused)

"""The demo as a producer, against a small HTTP server with scripted answers."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from handlers.cli.demo import route_of, run
from kernel.messages import MESSAGE_TYPES, decode_message
from tests.handlers.http_app import ROUTES


class Service(ThreadingHTTPServer):
    """An HTTP server with scripted answers (status, headers, body), then receipts; None closes without an answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers: list[tuple[int, dict[str, str], object] | None] = []
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Service

    def setup(self) -> None:
        """Count the connection."""
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        """Record the request, and send the next answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        receipt = {"sequence": len(self.server.got), "epoch": "e", "subscribers": 1}
        answer = self.server.answers.pop(0) if self.server.answers else (202, {}, receipt)
        if answer is None:
            self.close_connection = True
            return
        status, headers, content = answer
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def service() -> Iterator[Service]:
    """A running server."""
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class FakeSleep:
    """A replacement for time.sleep that records the pauses."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        """Record a pause."""
        if seconds:
            self.slept.append(seconds)


def demo(service: Service, count: int = 20, rate: float = 0, api_key: str = "") -> tuple[int, list[str], list[float]]:
    """Run the demo; return its exit status, lines and pauses."""
    lines: list[str] = []
    sleep = FakeSleep()
    status = run(service.url, rate=rate, count=count, seed=1, api_key=api_key, emit=lines.append, sleep=sleep)
    return status, lines, sleep.slept


def test_routes() -> None:
    """Every message type has a route."""
    assert set(ROUTES) == set(MESSAGE_TYPES)
    assert {kind: route_of(kind) for kind in ROUTES} == ROUTES


def test_posts(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """Messages are posted to their routes over one connection, each with its own key, and each is printed."""
    status, lines, slept = demo(service, 200)
    assert (status, len(lines), len(service.got), service.connections, slept) == (0, 200, 200, 1, [])
    kinds = {path: kind for kind, path in ROUTES.items()}
    for number, (line, (path, headers, body)) in enumerate(zip(lines, service.got, strict=True), 1):
        assert line.split() == [str(number), kinds[path]]
        assert headers["Content-Type"] == "application/json"
        assert "X-API-Key" not in headers
        decode_message(kinds[path], body)
    assert len({headers["Idempotency-Key"] for _, headers, _ in service.got}) == 200
    assert {path for path, _, _ in service.got} == set(ROUTES.values())
    assert "200 messages sent, 0 refused" in capsys.readouterr().err


def test_rate(service: Service) -> None:
    """The rate is messages per second."""
    _, _, slept = demo(service, 5, rate=0.5)
    assert [round(seconds) for seconds in slept] == [2, 4, 6, 8]  # no time has passed in between


def test_api_key(service: Service) -> None:
    """The API key is sent with each message."""
    demo(service, 2, api_key="secret")
    assert [headers["X-API-Key"] for _, headers, _ in service.got] == ["secret", "secret"]


def test_unavailable(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """After a 503 the same message is sent again with the same key, once Retry-After has passed."""
    problem = {"title": "Service Unavailable", "detail": "the circuit is open"}
    service.answers = [(503, {"Retry-After": "7"}, problem), (503, {}, {})]
    status, lines, slept = demo(service, 2)
    assert (status, len(lines), slept) == (0, 2, [7.0, 1.0])
    bodies = [(headers["Idempotency-Key"], body) for _, headers, body in service.got]
    assert bodies[0] == bodies[1] == bodies[2] != bodies[3]
    assert "503 the circuit is open; trying again in 7 s" in capsys.readouterr().err


def test_unavailable_for_long(service: Service) -> None:
    """A message that is not accepted in five attempts counts as refused, and the demo continues."""
    service.answers = [(503, {"Retry-After": "900"}, {})] * 5
    status, lines, slept = demo(service, 2)
    assert (status, len(lines), slept) == (1, 1, [60.0] * 4)


def test_refused(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """A refused message is reported with the reason, the demo continues, and ends with status 1."""
    errors = [{"field": "data.id", "message": "must be\nan int"}, "x"]
    service.answers = [(400, {}, {"detail": "not valid", "errors": errors}), (500, {}, ["no problem document"])]
    status, lines, _ = demo(service, 3)
    assert (status, len(lines)) == (1, 1)
    told = capsys.readouterr().err.splitlines()
    assert told[0].endswith("refused: 400 not valid; data.id: must be an int")
    assert told[1].endswith("refused: 500")
    assert told[2].startswith("1 messages sent, 2 refused")


def test_wrong_key(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong key ends the demo, because every message would be refused, and the error says where to set the key."""
    service.answers = [(401, {}, {"title": "Unauthorized"})]
    assert demo(service, 3)[0] == 1
    assert len(service.got) == 1
    assert "EVENT_BROADCASTER_API_KEY" in capsys.readouterr().err


def test_connection_closed_between(service: Service) -> None:
    """If the server has closed the connection, the demo reconnects and sends the message with the same key."""
    service.answers = [(202, {}, {"sequence": 1}), None]
    status, lines, _ = demo(service, 2)
    assert (status, len(lines), service.connections) == (0, 2, 2)
    assert service.got[1][1]["Idempotency-Key"] == service.got[2][1]["Idempotency-Key"]


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    """If nothing listens at the URL, one line says what to do, and the status is 1."""
    with Service() as service:
        pass
    assert demo(service)[0] == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "refused; is `event-broadcaster serve` running?" in told[0]


def test_interrupt(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends the demo with its summary and status 0."""

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    assert run(service.url, rate=0, count=None, seed=1, emit=interrupt) == 0
    assert "1 messages sent" in capsys.readouterr().err

"""Set-up from the `OTEL_*` variables: when tracing is on or off, and what happens for values that cannot be used."""

import logging
import re
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider

from kernel.observer import CircuitMoved, Delivered, DeliveredEvent, TraceContext, Written
from kernel.position import Position
from telemetry import Telemetry
from telemetry.tracing import Tracing
from tests import processes
from tests.collector import Collector, tree
from tests.system.replica import ROOT, clean_environment

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}

Make = Callable[[dict[str, str]], Telemetry]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that sets up telemetry; it sets the variables in the process too, where exporters read them."""

    def make(environ: dict[str, str]) -> Telemetry:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return Telemetry(environ, channel="c", redis_url="redis://cache:6380/1", version="1.2.3")

    return make


async def traces(telemetry: Telemetry) -> bool:
    """Return True if tracing is on; stops the telemetry."""
    on = bool(telemetry.observers)
    assert bool(telemetry.middleware) is on
    await telemetry.stop()
    RedisInstrumentor().uninstrument()
    return on


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_TRACES_EXPORTER": "none"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9/v1/metrics"},
        {"OTEL_SERVICE_NAME": "cameras", "OTEL_TRACES_SAMPLER": "always_on"},
    ],
)
async def test_off(make: Make, environ: dict[str, str]) -> None:
    """Tracing is off unless an endpoint or an exporter is set, and if OTEL_SDK_DISABLED or "none" switches it off."""
    assert not await traces(make(environ))


@pytest.mark.parametrize(
    "environ",
    [
        ENDPOINT,
        {**ENDPOINT, "OTEL_SDK_DISABLED": "false"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_TRACES_EXPORTER": "Console, none"},
        {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "nonsense", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
    ],
)
async def test_on(make: Make, environ: dict[str, str]) -> None:
    """Tracing is on if an endpoint or an exporter is set."""
    assert await traces(make(environ))


@pytest.mark.parametrize(
    ("environ", "logged"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "traces are not exported: no exporter 'zipkin' is installed"),
        (
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_METRICS_EXPORTER": "none"},
            "traces are not exported: no OTLP over 'http/json', only over http/protobuf and grpc",
        ),
        (
            {**ENDPOINT, "OTEL_BSP_MAX_QUEUE_SIZE": "-1", "OTEL_METRICS_EXPORTER": "none"},
            "traces are not exported: max_queue_size must be a positive integer.",
        ),
    ],
)
async def test_wrong(make: Make, caplog: pytest.LogCaptureFixture, environ: dict[str, str], logged: str) -> None:
    """A value that cannot be used is logged as one error, and the service starts without tracing."""
    assert not await traces(make(environ))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [logged]


@pytest.mark.skipif(find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None, reason="the extra is installed")
async def test_without_the_extra(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """If OTLP over gRPC is asked for but not installed, the log names the extra to install."""
    assert not await traces(make({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_METRICS_EXPORTER": "none"}))
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage().endswith(": install event-broadcaster[otlp-grpc]")


async def test_off_is_free(make: Make) -> None:
    """While tracing is off, redis-py is not patched, and there is neither an observer nor a middleware."""
    telemetry = make({})
    assert not RedisInstrumentor().is_instrumented_by_opentelemetry
    assert telemetry.observers == []
    assert telemetry.middleware == []
    assert telemetry.after_exception == []
    await telemetry.stop()


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ({"NODE_NAME": "n1"}, "n1"),
        ({"NODE_NAME": ""}, socket.gethostname()),
        ({}, socket.gethostname()),
        ({"NODE_NAME": "n1", "OTEL_RESOURCE_ATTRIBUTES": "host.name=theirs"}, "theirs"),
    ],
)
async def test_host_name(make: Make, given: dict[str, str], host: str) -> None:
    """`host.name` is the node's name, or else the host's; an operator's own value wins."""
    telemetry = make({"OTEL_TRACES_EXPORTER": "console", **given})
    (observer,) = telemetry.observers
    assert isinstance(observer, Tracing)
    assert isinstance(observer.provider, TracerProvider)
    assert observer.provider.resource.attributes["host.name"] == host
    assert await traces(telemetry)


@pytest.mark.parametrize(
    ("given", "replica"),
    [
        ({"POD_NAME": "event-broadcaster-7d9f8b-x2x4z"}, "x2x4z"),
        ({"POD_NAME": "alone", "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=blue-1"}, "alone"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=blue-1"}, "blue-1"),
        ({}, "[0-9a-f]{8}"),
    ],
)
async def test_the_name_of_the_replica(make: Make, given: dict[str, str], replica: str) -> None:
    """A delivery has the end of the pod's name, or the id of the instance; of an id that is generated the beginning."""
    trace = TraceContext(f"00-{1:032x}-{1:016x}-01")
    event = DeliveredEvent(Position("e", 1), "id", "event", trace, 1.0, 1.5, 1)
    with Collector() as collector:
        telemetry = make({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces", **given})
        (observer,) = telemetry.observers
        observer.delivered(Delivered(Position("e", 0), Position("e", 1), 1.0, 2.0, 1, Written(1, 0, 0), [], [event]))
        assert await traces(telemetry)
    (span,) = collector.spans
    assert re.fullmatch(replica, span.attributes["event_broadcaster.replica"])


async def test_an_outage_ends_with_the_service(make: Make) -> None:
    """The span of an outage that is not over is exported at the stop."""
    with Collector() as collector:
        telemetry = make({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces"})
        (observer,) = telemetry.observers
        observer.circuit_moved(CircuitMoved("closed", "open", "down", 5))
        assert await traces(telemetry)
    assert tree(collector.spans) == ["circuit open !", "  circuit closed -> open"]
    assert collector.named("circuit open", event_broadcaster_unfinished=True)


@pytest.mark.parametrize(
    ("given", "left"), [({}, "database,http"), ({"OTEL_SEMCONV_STABILITY_OPT_IN": "http"}, "http")]
)
def test_stable_names(given: dict[str, str], left: str) -> None:
    """Spans of Redis have the stable names of the conventions, unless the operator has chosen others."""
    assert imported(given, "print(os.environ['OTEL_SEMCONV_STABILITY_OPT_IN'])") == left


def imported(environ: dict[str, str], code: str) -> str:
    """Run `code` in a new process with these variables, and return its output."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        f"import telemetry, os; from opentelemetry import propagate; {code}",
    ]
    ended = processes.run(command, cwd=ROOT, env=clean_environment(**environ))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("tracecontext,baggage", "baggage traceparent tracestate"),
        ("tracecontext, b3 ,xray", "traceparent tracestate"),
        ("b3", ""),
        ("none", ""),
        ("", "baggage traceparent tracestate"),
    ],
)
def test_propagators(given: str, left: str) -> None:
    """Propagators that are not installed are ignored; they do not end the process."""
    fields = "print(*sorted(propagate.get_global_textmap().fields))"
    assert imported({"OTEL_PROPAGATORS": given}, fields) == left


def test_unknown_propagators_are_named() -> None:
    """Propagators that are not installed are logged by name if tracing is on."""
    code = (
        "import logging; logging.basicConfig(format='%(levelname)s %(message)s', stream=__import__('sys').stdout); "
        "telemetry.Telemetry(os.environ, channel='c', redis_url='redis://', version='1')"
    )
    environ = {"OTEL_PROPAGATORS": "b3,tracecontext", "OTEL_TRACES_EXPORTER": "console"}
    assert imported(environ, code) == "WARNING OTEL_PROPAGATORS: propagator 'b3' is not installed, ignoring it"
    assert imported({"OTEL_PROPAGATORS": "b3"}, code) == ""

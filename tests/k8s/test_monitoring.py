"""Dashboard, alerts and scaling metrics: every query is valid, names existing metrics, and works as intended."""

import json
import math
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from handlers.openapi.examples import EXAMPLES
from tests import processes
from tests.collector import Collector
from tests.k8s.queries import NAMESPACE, PROMISED, queries
from tests.k8s.tools import K8S, MONITORING, built, one, run, tool
from tests.system.client import connected
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

PRODUCTION = "overlays/production"
POD = 'namespace="event-broadcaster",pod="a"'
OTHER = 'namespace="event-broadcaster",pod="b"'
_E = "event_broadcaster_"


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    (group,) = one(built(PRODUCTION), "PrometheusRule")["spec"]["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def promtool() -> str:
    """Return the path of promtool, Prometheus's checker."""
    return tool("promtool", "Debian's package prometheus")


def test_queries_are_promql(tmp_path: Path) -> None:
    """Every query of dashboard, alerts, prometheus-adapter and KEDA is valid PromQL."""
    recorded = [{"record": f"query:{number}", "expr": query.text} for number, query in enumerate(queries())]
    assert len(recorded) > 40
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "queries", "rules": recorded}]}))
    run(promtool(), "check", "rules", tmp_path / "rules.yaml")


def test_queries_name_what_there_is() -> None:
    """The queries name only metrics and labels that the service has, and use every metric in PROMISED."""
    wrong = {query.where: query.unknown for query in queries() if query.unknown}
    assert not wrong
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for query in queries() for name in query.series}
    assert shown == set(PROMISED)


def test_scaling_metrics() -> None:
    """The pod metrics of the HPA are exactly those that the adapter's rules define."""
    made = {query.where.removeprefix("adapter: ") for query in queries() if query.where.startswith("adapter: ")}
    hpa = one(built("components/hpa-prometheus-adapter"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert {metric["pods"]["metric"]["name"] for metric in hpa if metric["type"] == "Pods"} == made


async def busy(replica: Replica) -> None:
    """Cause everything that changes a metric of a healthy service: publish, deliver, ack, resume."""
    async with connected(replica.websocket()) as client:
        for _ in range(3):
            await replica.post("/broadcast/event", EXAMPLES["event"]["data"] | {"risk_score": 90})
        frame = await client.take(type="event", requires_ack=True)
        await client.send({"type": "ack", "data": {"sequence": frame["sequence"]}})
        await client.send("ping")
        await client.take(type="pong")
    async with connected(replica.websocket(since=0)) as late:
        await late.take(type="resync_ack")


async def test_metrics_are_exposed(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """The running service exposes every metric that the manifests name, with the same type and labels."""
    replica = start(redis_url=valkey, redis_event_channel=channel)
    await busy(replica)
    (scraped,) = one(built(PRODUCTION), "ServiceMonitor")["spec"]["endpoints"]
    text = replica.get(scraped["path"]).text
    run(promtool(), "check", "metrics", input=text)
    exposed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert {name: exposed.get(name) for name in PROMISED} == {name: kind for name, (kind, _) in PROMISED.items()}
    seen = set()
    for name, labels in re.findall(r"^(\w+)\{(.*)\} ", text, re.MULTILINE):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        if family in PROMISED:
            seen.add(family)
            assert set(re.findall(r'(\w+)="', labels)) - {"le"} == PROMISED[family][1], name
    labelled = {name for name, (_, labels) in PROMISED.items() if labels}
    assert labelled <= seen


def test_keda_asks_for_one_pods_share(tmp_path: Path) -> None:
    """KEDA's query is the average of connections over pods that do not drain; a query without a result is an error."""
    prometheus = [t for t in one(built("components/hpa-keda"), "ScaledObject")["spec"]["triggers"] if "name" in t]
    assert {trigger["metadata"]["ignoreNullValues"] for trigger in prometheus} == {"false"}
    (query,) = (query.text for query in queries() if query.where == "keda: connections")
    series = [
        f"{_E}connections{{{POD}}} 100x60",
        f"{_E}connections{{{OTHER}}} 300x20 _x20 300x20",
        f"{_E}draining{{{POD}}} 0x40 1x20",
    ]
    checks = [
        {"expr": query, "eval_time": at, "exp_samples": [{"labels": "{}", "value": value}] if value else []}
        for at, value in (("10m", 200), ("30m", 100), ("50m", 300), ("90m", 0))
    ]
    inputs = [dict(zip(("series", "values"), text.split(" ", 1), strict=True)) for text in series]
    test = {"interval": "1m", "input_series": inputs, "promql_expr_test": checks}
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [test]})
    )
    run(promtool(), "test", "rules", tmp_path / "tests.yaml")


@contextmanager
def prometheus(target: str, port: int, folder: Path) -> Iterator[httpx.Client]:
    """Run a Prometheus that scrapes one replica every second, with the labels that a scrape in a cluster adds.

    It keeps exemplars.
    """
    binary = tool("prometheus", "Debian's package prometheus")
    labels = {"namespace": NAMESPACE, "pod": "a"}
    job = {"job_name": "replica", "static_configs": [{"targets": [target], "labels": labels}]}
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    command = [binary, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"]
    client = httpx.Client(verify=False, trust_env=False, base_url=f"http://127.0.0.1:{port}")
    with processes.running(command, stderr=subprocess.DEVNULL), client as http:
        yield http


def asked(http: httpx.Client, query: str) -> list[Any]:
    """Return the result of a query; an empty list while Prometheus is starting."""
    data = _data(http, "/api/v1/query", query=query)
    return data["result"] if data else []


def exemplars(http: httpx.Client, query: str) -> list[Any]:
    """Return the exemplars for the series in a query, by series; an empty list while Prometheus is starting."""
    return _data(http, "/api/v1/query_exemplars", query=query, start=0, end=time.time() + 60) or []


def _data(http: httpx.Client, path: str, **parameters: str | float) -> Any:
    try:
        answer = http.get(path, params=parameters)
    except httpx.TransportError:
        return None
    if answer.status_code == 503:
        return None
    assert answer.status_code == 200, (parameters, answer.text)
    return answer.json()["data"]


async def test_prometheus_answers(
    start: ReplicaFactory, valkey: str, channel: str, tmp_path: Path, unused_ports: tuple[int, int]
) -> None:
    """A real Prometheus that scrapes the service answers every query, and no alert fires for a healthy service."""
    replica = start(redis_url=valkey, redis_event_channel=channel)
    await busy(replica)
    with prometheus(f"127.0.0.1:{replica.port}", unused_ports[0], tmp_path) as http:
        scraped = "count_over_time(event_broadcaster_connections[1m]) >= 3"
        await eventually(lambda: asked(http, scraped), 30)
        answers = {query: asked(http, query.text) for query in queries()}
    for query, answer in answers.items():
        kind = query.where.partition(":")[0]
        if kind == "alert":
            assert not answer, query.where
        else:
            assert answer, query
        if kind == "keda":  # KEDA requires exactly one number
            ((_, value),) = (sample["value"] for sample in answer)
            assert math.isfinite(float(value)), query


async def test_exemplars_lead_to_traces(
    start: ReplicaFactory, valkey: str, channel: str, tmp_path: Path, unused_ports: tuple[int, int]
) -> None:
    """A real Prometheus has an exemplar for each panel that shows some; its `trace_id` is that of the event's trace."""
    shown = {query.text: name for query in queries() if query.exemplars for name in query.series}
    assert sorted(shown.values()) == [f"{_E}delivery_lag_seconds_bucket", f"{_E}publish_duration_seconds_bucket"]
    sampled, unsampled = os.urandom(16).hex(), os.urandom(16).hex()
    with Collector() as collector:
        traced = {"otel_exporter_otlp_endpoint": collector.url, "otel_bsp_schedule_delay": 20}
        replica = start(redis_url=valkey, redis_event_channel=channel, **traced)
        for trace, flag in ((sampled, 1), (unsampled, 0)):
            headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-0{flag}"}
            answer = await replica.request("POST", "/broadcast/alert/deleted", json={"id": "x"}, headers=headers)
            assert answer.status_code == 202, answer.text
        await replica.delivers(answer.json()["sequence"])
        with prometheus(f"127.0.0.1:{replica.port}", unused_ports[0], tmp_path) as http:
            await eventually(lambda: all(exemplars(http, query) for query in shown), 30)
            found = {name: exemplars(http, query) for query, name in shown.items()}
        replica.stop()
        assert collector.spans
    for name, answers in found.items():
        ((labels, points),) = ((series["seriesLabels"], series["exemplars"]) for series in answers)
        assert (labels["__name__"], labels["namespace"], labels["pod"]) == (name, NAMESPACE, "a")
        assert [point["labels"] for point in points] == [{"trace_id": sampled}]
        assert 0 < float(points[0]["value"]) <= float(labels["le"])
    assert {span.trace for span in collector.spans if span.name.startswith(("publish", "deliver"))} == {sampled}


def test_dashboard() -> None:
    """Grafana's sidecar finds the dashboard; its panels have unique ids, do not overlap and use defined variables."""
    config = one(built(PRODUCTION), "ConfigMap", "event-broadcaster-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads((K8S / MONITORING / "dashboard.json").read_text())
    assert json.loads(config["data"]["event-broadcaster.json"]) == dashboard
    panels = dashboard["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval"}
    assert used == variables


# For each alert, series that make it fire and series that must not: one sample a minute, evaluated after an hour.
ALERTS: dict[str, tuple[list[str], list[str]]] = {
    "Absent": (
        [f'{_E}connections{{namespace="elsewhere",pod="a"}} 1x60'],
        [f"{_E}connections{{{POD}}} 0x60"],
    ),
    "Degraded": ([f"{_E}degraded{{{POD}}} 0x50 1x10"], [f"{_E}degraded{{{POD}}} 1x50 0x10"]),
    "EventsLost": ([f"{_E}gaps_total{{{POD}}} 0x55 5x5"], [f"{_E}gaps_total{{{POD}}} 7x60"]),
    "ReplicaStuck": (
        [f"{_E}sequence{{{POD}}} 0+1x40 40x20", f"{_E}sequence{{{OTHER}}} 0+1x60"],
        # No replica advances, so nothing is published; a degraded replica has an alert of its own.
        [f"{_E}sequence{{{POD}}} 40x60", f"{_E}sequence{{{OTHER}}} 40x60"],
    ),
    "PublishFailures": (
        [
            f'{_E}published_total{{{POD},type="event"}} 0+100x60',
            f'{_E}publish_failures_total{{{POD},type="event"}} 0+2x60',
        ],
        [
            f'{_E}published_total{{{POD},type="event"}} 0+1000x60',
            f'{_E}publish_failures_total{{{POD},type="event"}} 0+2x60',
        ],
    ),
    "DeliveryLag": (
        [
            f'{_E}delivery_lag_seconds_bucket{{{POD},le="{le}"}} 0+{n}x60'
            for le, n in (("1", 90), ("5", 100), ("+Inf", 100))
        ],
        [
            f'{_E}delivery_lag_seconds_bucket{{{POD},le="{le}"}} 0+{n}x60'
            for le, n in (("1", 100), ("5", 100), ("+Inf", 100))
        ],
    ),
    "LoopLag": (
        [
            f'{_E}loop_lag_seconds_bucket{{{POD},le="{le}"}} 0+{n}x60'
            for le, n in (("0.25", 90), ("1", 100), ("+Inf", 100))
        ],
        [
            f'{_E}loop_lag_seconds_bucket{{{POD},le="{le}"}} 0+{n}x60'
            for le, n in (("0.1", 100), ("1", 100), ("+Inf", 100))
        ],
    ),
    "SlowClientsClosed": (
        [f'{_E}closes_total{{{POD},code="4008"}} 0+2x60'],
        [f'{_E}closes_total{{{POD},code="4008"}} 0x59 5', f'{_E}closes_total{{{POD},code="1012"}} 0+100x60'],
    ),
    "ForeignDocuments": (
        [f"{_E}foreign_documents_total{{{POD}}} 0x55 1x5"],
        [f"{_E}foreign_documents_total{{{POD}}} 9x60"],
    ),
    "HistoryShort": (
        [f"{_E}history_depth{{{POD}}} 10000x60", f'{_E}published_total{{{POD},type="event"}} 0+3000x60'],
        [f"{_E}history_depth{{{POD}}} 10000x60", f'{_E}published_total{{{POD},type="event"}} 0+1500x60'],
    ),
    "ConnectionsHigh": (
        [f"{_E}connections{{{POD}}} 5000x60", f"{_E}connections{{{OTHER}}} 100x60"],
        [f"{_E}connections{{{POD}}} 4000x60"],
    ),
}


@pytest.mark.parametrize("fires", [True, False])
def test_alerts(fires: bool, tmp_path: Path) -> None:
    """Each alert fires for the series in ALERTS that should make it fire, and for no others."""
    assert {rule["alert"].removeprefix("EventBroadcaster") for rule in rules()} == set(ALERTS)
    tests = []
    for name, cases in ALERTS.items():
        series = [dict(zip(("series", "values"), text.split(" ", 1), strict=True)) for text in cases[not fires]]
        expression = f'count(ALERTS{{alertname="EventBroadcaster{name}",alertstate="firing"}})'
        expected = [{"labels": "{}", "value": 1}] if fires else []
        check = {"expr": expression, "eval_time": "1h", "exp_samples": expected}
        tests.append({"name": name, "interval": "1m", "input_series": series, "promql_expr_test": [check]})
    groups = one(built(PRODUCTION), "PrometheusRule")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests})
    )
    run(promtool(), "check", "rules", tmp_path / "rules.yaml")
    run(promtool(), "test", "rules", tmp_path / "tests.yaml")


# What operation brings about without a fault, as series of one sample every 15 seconds for an hour. A pod that is gone
# has no samples; a pod whose number stands still is quiet. No alert may fire in any minute of it.
ORDINARY: dict[str, list[str]] = {
    "a rollout under load": [
        f"{_E}sequence{{{POD}}} 0+5x100 stale",
        f"{_E}sequence{{{OTHER}}} _x80 400+5x160",
    ],
    "a scale-down under load": [
        f"{_E}sequence{{{POD}}} 0+5x100 stale",
        f"{_E}sequence{{{OTHER}}} 0+5x240",
    ],
    "a scale-down of a quiet system": [
        f"{_E}sequence{{{POD}}} 500x100 stale",
        f"{_E}sequence{{{OTHER}}} 500x98 501+1x140",
    ],
    "a restart of Redis": [
        f"{_E}sequence{{{POD}}} 0+5x100 500x3 500+5x130",
        f"{_E}sequence{{{OTHER}}} 0+5x100 500x3 500+5x130",
        f"{_E}degraded{{{POD}}} 0x100 1x3 0x131",
        f"{_E}degraded{{{OTHER}}} 0x100 1x3 0x131",
    ],
    "a quiet night": [
        f"{_E}sequence{{{POD}}} 500x240",
        f"{_E}sequence{{{OTHER}}} 500x240",
        f'{_E}published_total{{{POD},type="event"}} 500x240',
    ],
}


def test_alerts_are_quiet_in_ordinary_operation(tmp_path: Path) -> None:
    """No alert fires in any minute of a rollout, a scale-down, a restart of Redis or a quiet night."""
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    tests = []
    for name, texts in ORDINARY.items():
        # The service is there all the time: without connections in any pod, its absence would be an alert.
        texts = [*texts, f"{_E}connections{{{OTHER}}} 100x240"]
        series = [dict(zip(("series", "values"), text.split(" ", 1), strict=True)) for text in texts]
        checks = [{"expr": firing, "eval_time": f"{minute}m", "exp_samples": []} for minute in range(1, 60)]
        tests.append({"name": name, "interval": "15s", "input_series": series, "promql_expr_test": checks})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(one(built(PRODUCTION), "PrometheusRule")["spec"]))
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": tests})
    )
    run(promtool(), "test", "rules", tmp_path / "tests.yaml")


def test_alerts_say_what_to_do() -> None:
    """Every alert has a severity, a summary and a description, which name only existing settings and files."""
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}
        text = " ".join(rule["annotations"].values())
        for name in re.findall(r"\b[A-Z]+_[A-Z_]+\b", text):
            assert name in {"HISTORY_SIZE", "WEBSOCKET_MAX_CONNECTIONS", "WEBSOCKET_MAX_AGE_SECONDS"}
        for path in re.findall(r"overlays/\S+\w", text):
            assert (K8S / path).exists()

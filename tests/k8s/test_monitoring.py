"""Dashboard, alerts and scaling metrics: every query can be read, names what the service has, and does what it says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.queries import PROMISED, queries
from tests.k8s.tools import K8S, built, one, run, tool
from tests.system.conftest import Start

PRODUCTION = "overlays/production"
POD = 'namespace="event-broadcaster",pod="a"'
OTHER = 'namespace="event-broadcaster",pod="b"'
_E = "event_broadcaster_"


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    (group,) = one(built(PRODUCTION), "PrometheusRule")["spec"]["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def promtool() -> str:
    """Prometheus's own checker."""
    return tool("promtool", "Debian's package prometheus")


def test_queries_are_promql(tmp_path: Path) -> None:
    """Monitoring: Prometheus can read every query of dashboard, alerts, prometheus-adapter and KEDA."""
    recorded = [{"record": f"query:{number}", "expr": query.text} for number, query in enumerate(queries())]
    assert len(recorded) > 40
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "queries", "rules": recorded}]}))
    run(promtool(), "check", "rules", tmp_path / "rules.yaml")


def test_queries_name_what_there_is() -> None:
    """Monitoring: every query names metrics and labels that the service has, and no metric goes unshown."""
    wrong = {query.where: query.unknown for query in queries() if query.unknown}
    assert not wrong
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for query in queries() for name in query.series}
    assert shown == set(PROMISED)


def test_scaling_metrics() -> None:
    """Scaling: every metric of the HPA is one that the adapter's rules make, under that name."""
    made = {query.where.removeprefix("adapter: ") for query in queries() if query.where.startswith("adapter: ")}
    hpa = one(built("components/hpa-prometheus-adapter"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert {metric["pods"]["metric"]["name"] for metric in hpa if metric["type"] == "Pods"} == made


def test_metrics_are_exposed(start: Start, valkey: str, channel: str) -> None:
    """Section 10, metrics: the running service has every metric that the manifests name, of the type they take it for."""
    replica = start(redis_url=valkey, redis_event_channel=channel)
    answer = replica.get("/metrics")
    if answer.status_code == 404:
        pytest.skip("the service has no /metrics yet; until then PROMISED in queries.py stands for what it will have")
    exposed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", answer.text, re.MULTILINE))
    exposed |= {f"{name}_total": kind for name, kind in exposed.items() if kind == "counter"}  # OpenMetrics' way
    assert {name: exposed.get(name) for name in PROMISED} == {name: kind for name, (kind, _) in PROMISED.items()}
    for name, labels in re.findall(r"^(\w+)\{(.*)\} ", answer.text, re.MULTILINE):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        if family in PROMISED:
            assert set(re.findall(r'(\w+)="', labels)) - {"le"} == PROMISED[family][1], name


def test_dashboard() -> None:
    """Monitoring: the dashboard is one that Grafana's sidecar takes: identifiers, places and variables are in order."""
    config = one(built(PRODUCTION), "ConfigMap", "event-broadcaster-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads((K8S / "overlays/production/dashboard.json").read_text())
    assert json.loads(config["data"]["event-broadcaster.json"]) == dashboard
    panels = dashboard["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval"}
    assert used == variables


# What makes each alert fire, and what must not: series from minute 0 on, one sample a minute, judged after an hour.
ALERTS: dict[str, tuple[list[str], list[str]]] = {
    "Absent": (
        [f'{_E}connections{{namespace="elsewhere",pod="a"}} 1x60'],
        [f"{_E}connections{{{POD}}} 0x60"],
    ),
    "Degraded": ([f"{_E}degraded{{{POD}}} 0x50 1x10"], [f"{_E}degraded{{{POD}}} 1x50 0x10"]),
    "EventsLost": ([f"{_E}gaps_total{{{POD}}} 0x55 5x5"], [f"{_E}gaps_total{{{POD}}} 7x60"]),
    "ReplicaStuck": (
        [f"{_E}sequence{{{POD}}} 0+1x40 40x20", f"{_E}sequence{{{OTHER}}} 0+1x60"],
        # nobody moves; one that is degraded has an alert of its own
        [f"{_E}sequence{{{POD}}} 40x60", f"{_E}sequence{{{OTHER}}} 40x60"],
    ),
    "PublishFailures": (
        [f'{_E}published_total{{{POD},type="event"}} 0+100x60', f'{_E}publish_failures_total{{{POD},type="event"}} 0+2x60'],
        [f'{_E}published_total{{{POD},type="event"}} 0+1000x60', f'{_E}publish_failures_total{{{POD},type="event"}} 0+2x60'],
    ),
    "DeliveryLag": (
        [f'{_E}delivery_lag_seconds_bucket{{{POD},le="{le}"}} 0+{n}x60' for le, n in (("1", 90), ("5", 100), ("+Inf", 100))],
        [f'{_E}delivery_lag_seconds_bucket{{{POD},le="{le}"}} 0+{n}x60' for le, n in (("1", 100), ("5", 100), ("+Inf", 100))],
    ),
    "LoopLag": (
        [f'{_E}loop_lag_seconds_bucket{{{POD},le="{le}"}} 0+{n}x60' for le, n in (("0.25", 90), ("1", 100), ("+Inf", 100))],
        [f'{_E}loop_lag_seconds_bucket{{{POD},le="{le}"}} 0+{n}x60' for le, n in (("0.1", 100), ("1", 100), ("+Inf", 100))],
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
    """Monitoring: each alert fires when it should, and is silent when it should be."""
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


def test_alerts_say_what_to_do() -> None:
    """Monitoring: every alert has an urgency, and says in words what happened and where to look."""
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}
        text = " ".join(rule["annotations"].values())
        for name in re.findall(r"\b[A-Z]+_[A-Z_]+\b", text):
            assert name in {"HISTORY_SIZE", "WEBSOCKET_MAX_CONNECTIONS", "WEBSOCKET_MAX_AGE_SECONDS"}
        for path in re.findall(r"overlays/\S+\w", text):
            assert (K8S / path).exists()

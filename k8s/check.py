#!/usr/bin/env python3
"""Name what a cluster lacks for an overlay before any of it is applied; needs Python and kubectl, and changes nothing.

    python3 k8s/check.py k8s/overlays/production [options of kubectl, such as --context=NAME]

The exit status is 0 if nothing is missing, 1 if something is, and 2 if the check cannot be made.
"""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

OLDEST = 30  # the minor version of the oldest Kubernetes with `sleep` as a preStop hook
PROVIDERS = {
    "gateway.networking.k8s.io": "the CRDs of the Gateway API",
    "monitoring.coreos.com": "the Prometheus operator",
    "keda.sh": "KEDA",
}
SELECTORS = {"ServiceMonitor": "serviceMonitorSelector", "PrometheusRule": "ruleSelector"}
ADAPTER = "prometheus-adapter, with the rules of k8s/components/hpa-prometheus-adapter/adapter-rules.yaml"

Document = dict[str, Any]


class Unreachable(Exception):
    """The cluster gives no answer, or kubectl cannot build the overlay."""


class Cluster:
    """The API server, as kubectl reaches it with these options."""

    def __init__(self, options: list[str]) -> None:
        self._options = options
        self.unreadable: set[str] = set()

    def get(self, path: str) -> Document | None:
        """Return the answer to a GET; None if there is none, or if it becomes one of the `unreadable` ones."""
        command = ["kubectl", "get", "--raw", path, "--request-timeout=20s", *self._options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            answer: Document = json.loads(done.stdout)
            return answer
        if "(Forbidden)" in done.stderr or "(Unauthorized)" in done.stderr:
            self.unreadable.add(path)
        elif "Error from server" not in done.stderr:
            raise Unreachable(done.stderr.strip().splitlines()[-1])
        return None

    def lacks(self, *paths: str) -> bool:
        """Return True if there is none of these; what this user may not read counts as there."""
        return all(self.get(path) is None and path not in self.unreadable for path in paths)


def render(overlay: str) -> list[Document]:
    """Build the overlay and return its documents."""
    built = _output(["kubectl", "kustomize", overlay], "")
    # kubectl prints JSON only for what it changes; this annotation is added to the output alone.
    text = _output(["kubectl", "annotate", "--local", "-f", "-", "-o", "json", "checked=yes"], built).strip()
    documents = []
    while text:
        document, end = json.JSONDecoder().raw_decode(text)
        documents.append(document)
        text = text[end:].lstrip()
    return documents


def missing(documents: list[Document], cluster: Cluster) -> Iterator[str]:
    """Yield one line for each thing that the cluster lacks, or that does not fit together."""
    version = cluster.get("/version") or {}
    if (minor := int(re.sub(r"\D.*", "", version["minor"]))) < OLDEST:
        yield f"Kubernetes 1.{OLDEST}: this is 1.{minor}"
    yield from _kinds(documents, cluster)
    yield from _metrics(documents, cluster)
    for document in documents:
        match document["kind"]:
            case "Deployment":
                yield from _zones(document, cluster)
                yield from _secrets(document, documents, cluster)
            case "HTTPRoute":
                yield from _gateways(document, cluster)
            case "ServiceMonitor":
                yield from _scraped_port(document, documents)
                yield from _selected(document, cluster)
            case "PrometheusRule":
                yield from _selected(document, cluster)


def notes(documents: list[Document], cluster: Cluster) -> Iterator[str]:
    """Yield one line for each thing that may be right, but should be looked at."""
    for name in sorted(set(re.findall(r'"kubernetes.io/metadata.name": "([^"]+)"', json.dumps(documents)))):
        if cluster.lacks(f"/api/v1/namespaces/{name}"):
            yield f"the NetworkPolicy names the namespace {name}, which this cluster does not have"
    for document in documents:
        if document["kind"] == "Deployment":
            for container in document["spec"]["template"]["spec"]["containers"]:
                if container["name"] == "event-broadcaster" and "/" not in container["image"]:
                    yield f"the image {container['image']} has no registry: each node must have it (images.newName)"


def _kinds(documents: list[Document], cluster: Cluster) -> Iterator[str]:
    for api in sorted({document["apiVersion"] for document in documents}):
        resources = cluster.get(f"/apis/{api}" if "/" in api else f"/api/{api}") or {}
        known = {resource["kind"] for resource in resources.get("resources", [])}
        for kind in sorted({document["kind"] for document in documents if document["apiVersion"] == api} - known):
            provider = PROVIDERS.get(api.partition("/")[0], "a Kubernetes with this version of it")
            yield f"{kind} ({api}): install {provider}, or remove what needs it from the overlay"


def _metrics(documents: list[Document], cluster: Cluster) -> Iterator[str]:
    scalers = {document["kind"]: document["spec"] for document in documents if "spec" in document}
    sources = {metric["type"] for metric in scalers.get("HorizontalPodAutoscaler", {}).get("metrics", [])}
    triggers = {trigger["type"] for trigger in scalers.get("ScaledObject", {}).get("triggers", [])}
    if ("Resource" in sources or "cpu" in triggers) and cluster.lacks("/apis/metrics.k8s.io/v1beta1"):
        yield "metrics-server: without it the HPA does not know the CPU"
    versions = ("/apis/custom.metrics.k8s.io/v1beta2", "/apis/custom.metrics.k8s.io/v1beta1")
    if "Pods" in sources and cluster.lacks(*versions):
        yield ADAPTER


def _zones(deployment: Document, cluster: Cluster) -> Iterator[str]:
    for constraint in deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
        if constraint["whenUnsatisfiable"] == "DoNotSchedule":
            key = constraint["topologyKey"]
            for node in (cluster.get("/api/v1/nodes") or {}).get("items", []):
                if key not in node["metadata"].get("labels", {}):
                    yield f"the label {key} of the node {node['metadata']['name']}, which gets no pod without it"


def _secrets(deployment: Document, documents: list[Document], cluster: Cluster) -> Iterator[str]:
    rendered = {document["metadata"]["name"] for document in documents if document["kind"] == "Secret"}
    pod, namespace = deployment["spec"]["template"]["spec"], deployment["metadata"]["namespace"]
    sources = [source for container in pod["containers"] for source in container.get("envFrom", [])]
    for name in [source["secretRef"]["name"] for source in sources if "secretRef" in source]:
        if name in rendered:
            continue
        path = f"/api/v1/namespaces/{namespace}"
        secret = f"{path}/secrets/{name}"
        values = (cluster.get(secret) or {}).get("data", {})
        if "REDIS_URL" not in values and secret not in cluster.unreadable:
            yield f"the Secret {name} in the namespace {namespace}, with REDIS_URL"
        url = base64.b64decode(values.get("REDIS_URL", "")).decode()
        if "/etc/redis-ca/" in url and cluster.lacks(f"{path}/configmaps/redis-ca"):
            yield f"the ConfigMap redis-ca in the namespace {namespace}, with the ca.crt that REDIS_URL names"


def _gateways(route: Document, cluster: Cluster) -> Iterator[str]:
    for parent in route["spec"]["parentRefs"]:
        name, namespace = parent["name"], parent.get("namespace", route["metadata"]["namespace"])
        if cluster.lacks(f"/apis/{route['apiVersion']}/namespaces/{namespace}/gateways/{name}"):
            yield f"the Gateway {name} in the namespace {namespace}: name yours in parentRefs of the HTTPRoute"


def _scraped_port(monitor: Document, documents: list[Document]) -> Iterator[str]:
    internal = any("INTERNAL_PORT" in document.get("data", {}) for document in documents)
    if internal and any(endpoint.get("targetPort") != "internal" for endpoint in monitor["spec"]["endpoints"]):
        yield "the internal port in the ServiceMonitor: list the component internal-port after service-monitor"


def _selected(document: Document, cluster: Cluster) -> Iterator[str]:
    field, labels = SELECTORS[document["kind"]], document["metadata"].get("labels", {})
    path = f"/apis/{document['apiVersion']}/prometheuses"
    selectors = [each["spec"].get(field) for each in (cluster.get(path) or {}).get("items", [])]
    wanted = [selector.get("matchLabels", {}) for selector in selectors if selector is not None]
    if path not in cluster.unreadable and not any(each.items() <= labels.items() for each in wanted):
        how = " or ".join(",".join(f"{name}={value}" for name, value in each.items()) for each in wanted)
        yield f"a Prometheus that selects the {document['kind']}" + (f": give it the label {how}" if how else "")


def _output(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unreachable(done.stderr.strip())
    return done.stdout


def main(arguments: list[str]) -> int:
    """Print what is missing, and return the exit status."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    cluster = Cluster(arguments[1:])
    try:
        documents = render(arguments[0])
        found = list(missing(documents, cluster))
        seen = list(notes(documents, cluster))
    except Unreachable as error:
        print(f"the check cannot be made: {error}", file=sys.stderr)
        return 2
    unreadable = [f"you may not read {path}, so this could not be checked" for path in sorted(cluster.unreadable)]
    for kind, lines in (("missing", found), ("note", [*seen, *unreadable])):
        for line in lines:
            print(f"{kind}: {line}")
    print(f"{len(found)} missing" if found else "nothing is missing")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

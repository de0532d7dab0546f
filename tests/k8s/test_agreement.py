"""The manifests agree with each other, with the settings of the service, and with the times of a drain."""

import base64
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from handlers.server import server
from handlers.settings import Settings
from telemetry import FLUSH_SECONDS
from tests.k8s.fleet import CORES_PER_CONNECTION
from tests.k8s.tools import BUILDS, K8S, ROOT, built, one, pod_specs, settings, with_components
from tests.k8s.tools import build as build_folder

builds = pytest.mark.parametrize("build", BUILDS)

# Time after the flush of the spans: closing Redis connections and ending the interpreter.
LEAVE_SECONDS = 5
# Variables that OpenTelemetry reads, not the service.
OTEL = re.compile("OTEL_[A-Z_]+")
# Variables that only other variables refer to.
POD = {"POD_NAME", "POD_UID", "POD_NAMESPACE", "NODE_NAME"}
SECRETS = {"REDIS_URL", "API_KEYS", "WEBSOCKET_TOKEN", "JWT_SECRET", "INTERNAL_TOKEN"}

Document = dict[str, Any]

OUTSIDE = ["/ws/events", "/events", "/broadcast", "/client.js", "/client.d.ts"]
"""The paths that are reachable from outside: those of clients and of producers."""


def deployment(build: str) -> Document:
    """Return the specification of the service's Deployment."""
    spec: Document = one(built(build), "Deployment")["spec"]
    return spec


def container(build: str) -> Document:
    """Return the service's container."""
    (only,) = deployment(build)["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def matches(selector: Document, labels: dict[str, str]) -> bool:
    """Return True if a `matchLabels` selector selects an object with these labels."""
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


@builds
def test_selectors(build: str) -> None:
    """Every workload selects exactly its own pods, and every Service selects exactly one workload."""
    documents = built(build)
    ours = deployment(build)["template"]["metadata"]["labels"]
    workloads = {name: one(documents, "Deployment", name) for name in _names(documents, "Deployment")}
    labels = {name: workload["spec"]["template"]["metadata"]["labels"] for name, workload in workloads.items()}
    for name, workload in workloads.items():
        assert [other for other in labels if matches(workload["spec"]["selector"], labels[other])] == [name]
    for name in _names(documents, "Service"):
        service = one(documents, "Service", name)["spec"]["selector"]
        assert [other for other in labels if service.items() <= labels[other].items()] == [name]
    assert matches(one(documents, "PodDisruptionBudget")["spec"]["selector"], ours)
    for constraint in deployment(build)["template"]["spec"]["topologySpreadConstraints"]:
        assert matches(constraint["labelSelector"], ours)
        assert constraint["maxSkew"] == 1
    for name in _names(documents, "NetworkPolicy"):
        selector = one(documents, "NetworkPolicy", name)["spec"]["podSelector"]
        assert name == "default-deny" or [o for o in labels if matches(selector, labels[o])] == [name]
    for name in _names(documents, "ServiceMonitor"):
        selector = one(documents, "ServiceMonitor", name)["spec"]["selector"]
        services = [one(documents, "Service", other)["metadata"] for other in _names(documents, "Service")]
        assert [meta["name"] for meta in services if matches(selector, meta["labels"])] == ["event-broadcaster"]


@builds
def test_ports(build: str) -> None:
    """The service listens on all interfaces at the container's port, and every port name refers to a port."""
    documents = built(build)
    assert settings(documents)["HOST"] == "0.0.0.0"
    numbers = {"http": settings(documents)["PORT"]}
    if "internal-port" in build:
        numbers["internal"] = settings(documents)["INTERNAL_PORT"]
    ports = {port["name"]: str(port["containerPort"]) for port in container(build)["ports"]}
    assert ports == numbers
    named = {
        name: {port["name"] for part in spec["containers"] for port in part["ports"]}
        for name, spec in pod_specs(documents)
    }
    for name in _names(documents, "Service"):
        for port in one(documents, "Service", name)["spec"]["ports"]:
            assert port["targetPort"] in named[f"Deployment/{name}"]
    for name in set(_names(documents, "NetworkPolicy")) - {"default-deny"}:
        for rule in one(documents, "NetworkPolicy", name)["spec"].get("ingress", []):
            assert {port["port"] for port in rule["ports"]} <= named[f"Deployment/{name}"]
    ports = {port["name"]: port["port"] for port in one(documents, "Service")["spec"]["ports"]}
    assert set(ports) == {"http"}, "no Service has the port of metrics and health"
    for name in _names(documents, "ServiceMonitor"):
        (end,) = one(documents, "ServiceMonitor", name)["spec"]["endpoints"]
        # The name of the Service's port is the same as that of the container's port.
        assert (end.get("port"), end.get("targetPort")) == (
            (None, "internal") if "internal-port" in build else ("http", None)
        )
    for name in _names(documents, "HTTPRoute"):
        for rule in one(documents, "HTTPRoute", name)["spec"]["rules"]:
            (backend,) = rule["backendRefs"]
            assert (backend["name"], backend["port"]) == ("event-broadcaster", ports["http"])
    for name in _names(documents, "Ingress"):
        for rule in one(documents, "Ingress", name)["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["backend"]["service"]["name"] == "event-broadcaster"
                assert path["backend"]["service"]["port"]["name"] in ports


@builds
def test_metrics_and_health_are_reached_on_their_port(build: str) -> None:
    """The probes and Prometheus use the port of metrics and health; the others get the public port alone."""
    operation = "internal" if "internal-port" in build else "http"
    probes = [container(build)[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {probe["port"] for probe in probes} == {operation}
    allowed = {
        _namespace(peer): [port["port"] for port in rule["ports"]]
        for rule in one(built(build), "NetworkPolicy")["spec"]["ingress"]
        for peer in rule["from"]
    }
    assert allowed == {"gateway": ["http"], "monitoring": [operation], None: ["http"]}, "None is this namespace"


@builds
def test_references(build: str) -> None:
    """Everything that a document refers to exists: ConfigMap, Secret, volumes, account, scale target."""
    documents = built(build)
    spec = deployment(build)["template"]["spec"]
    assert one(documents, "ServiceAccount", spec["serviceAccountName"])["automountServiceAccountToken"] is False
    sources = container(build)["envFrom"]
    assert [next(iter(source)) for source in sources] == ["configMapRef", "secretRef"]
    assert not any(next(iter(source.values())).get("optional") for source in sources)
    if build.startswith("overlays/dev"):
        one(documents, "Secret", sources[1]["secretRef"]["name"])
    else:
        assert sources[1]["secretRef"]["name"] == "event-broadcaster"  # created by hand, so its name has no hash
    for _, pod in pod_specs(documents):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        assert {mount["name"] for part in pod["containers"] for mount in part.get("volumeMounts", [])} == volumes
    assert not any("emptyDir" in volume for volume in spec.get("volumes", [])), "a node drain refuses local storage"
    scalers = [one(documents, kind) for kind in ("HorizontalPodAutoscaler", "ScaledObject") if _names(documents, kind)]
    assert len(scalers) == (not build.startswith("overlays/dev")), "two scalers would conflict"
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "event-broadcaster"}
        assert "replicas" not in deployment(build), "kubectl apply would reset the scaler's number"


@builds
def test_settings(build: str) -> None:
    """Each variable is a setting of the service or of OpenTelemetry, has a valid value, and is set once."""
    documents = built(build)
    variables = settings(documents)
    known = {name.upper() for name in Settings.__struct_fields__}
    assert not [name for name in variables if name not in known and not OTEL.fullmatch(name)]
    assert not SECRETS & set(variables)
    Settings.from_environment(variables)
    # From OpenTelemetry's specification, "General SDK Configuration".
    samplers = {f"{root}{way}" for root in ("", "parentbased_") for way in ("always_on", "always_off", "traceidratio")}
    assert variables.get("OTEL_TRACES_SAMPLER", "always_on") in samplers
    assert 0 <= float(variables.get("OTEL_TRACES_SAMPLER_ARG", 1)) <= 1
    direct = [variable["name"] for variable in container(build)["env"]]
    assert set(direct) - POD == {"OTEL_RESOURCE_ATTRIBUTES"}
    assert not set(direct) & set(variables)
    if build.startswith("overlays/dev"):
        (secret,) = (document for document in documents if document["kind"] == "Secret")
        assert set(secret["data"]) == {"REDIS_URL"}
    else:
        assert not _names(documents, "Secret"), "no secret is in the manifests"


@builds
def test_resource_attributes(build: str) -> None:
    """Pod metadata become resource attributes, from variables that are defined before the one that uses them."""
    seen: set[str] = set()
    for variable in container(build)["env"]:
        assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= seen
        seen.add(variable["name"])
    (attributes,) = (v["value"] for v in container(build)["env"] if v["name"] == "OTEL_RESOURCE_ATTRIBUTES")
    pairs = dict(pair.split("=") for pair in attributes.split(","))
    assert {"service.instance.id", "k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.node.name"} <= set(pairs)
    assert not re.search(r"\s", attributes)
    variables = settings(built(build))
    assert variables["OTEL_SERVICE_NAME"] == "event-broadcaster"
    assert variables["OTEL_METRICS_EXPORTER"] == "none", "Prometheus scrapes the metrics"
    assert variables.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf") == "http/protobuf", "the image has no other"


@builds
def test_grace(build: str) -> None:
    """The grace period covers preStop, drain, closing sockets, requests in flight and the flush of spans."""
    assert grace(build) >= stop_seconds(build)


@builds
def test_one_drain_at_a_time(build: str) -> None:
    """A rollout, a scale-down or an eviction starts no drain before the previous one is over."""
    spec = deployment(build)
    assert spec["minReadySeconds"] >= grace(build)
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert one(built(build), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    for behavior in behaviors(build):
        down = behavior["scaleDown"]
        (policy,) = down["policies"]
        assert (policy["type"], policy["value"]) == ("Pods", 1)
        assert policy["periodSeconds"] >= grace(build)
        # A policy would allow pods added within its period to be removed at once; the stabilization window prevents it.
        assert down["stabilizationWindowSeconds"] >= max(300, 2 * policy["periodSeconds"])
        assert down["stabilizationWindowSeconds"] > behavior["scaleUp"]["stabilizationWindowSeconds"]


@builds
def test_nothing_is_left_to_fill_in(build: str) -> None:
    """A reference to a field names its version, and a quantity is written as it is stored: an apply changes neither."""
    for _, spec in pod_specs(built(build)):
        for each in spec["containers"]:
            sources = [variable["valueFrom"] for variable in each.get("env", []) if "valueFrom" in variable]
            assert {source["fieldRef"]["apiVersion"] for source in sources if "fieldRef" in source} <= {"v1"}
    for name in _names(built(build), "HorizontalPodAutoscaler"):
        for metric in one(built(build), "HorizontalPodAutoscaler", name)["spec"]["metrics"]:
            if metric["type"] == "Pods":
                value = metric["pods"]["target"]["averageValue"]
                assert not re.search("000m?$", value), f"{value} is stored in another way"


def test_scalers_agree() -> None:
    """KEDA scales with the same bounds, behaviour and targets as the HPA."""
    (plain,), (keda,) = behaviors("base"), behaviors("components/hpa-keda")
    assert plain == keda
    hpa = one(built("components/hpa-prometheus-adapter"), "HorizontalPodAutoscaler")["spec"]
    scaled = one(built("components/hpa-keda"), "ScaledObject")["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (scaled["minReplicaCount"], scaled["maxReplicaCount"])
    cpu, connections, lag = hpa["metrics"]
    values = [next(iter(trigger["metadata"][key] for key in ("value", "threshold") if key in trigger["metadata"]))
              for trigger in scaled["triggers"]]  # fmt: skip
    assert str(cpu["resource"]["target"]["averageUtilization"]) == values[0]
    assert connections["pods"]["target"]["averageValue"] == f"{int(values[1]) // 1000}k"
    assert lag["pods"]["target"]["averageValue"] == f"{float(values[2]) * 1000:.0f}m"


@pytest.mark.parametrize(
    "scalers", [["hpa-keda"], ["hpa-keda", "hpa-prometheus-adapter"], ["hpa-prometheus-adapter", "hpa-keda"]]
)
def test_production_with_keda(scalers: list[str], tmp_path: Path) -> None:
    """Production builds with KEDA, alone or with the adapter in either order, and keeps its bounds and one scaler."""

    def choose(names: list[str]) -> list[str]:
        return [name for name in names if not name.startswith("hpa-")] + scalers

    documents = build_folder(with_components(tmp_path, "overlays/production", choose))
    assert _names(documents, "HorizontalPodAutoscaler") == []
    scaled = one(documents, "ScaledObject")
    hpa = one(built("overlays/production"), "HorizontalPodAutoscaler")
    bounds = scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]
    assert bounds == (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"])
    # KEDA refuses a name that an HPA has already, unless it is told to take over.
    assert scaled["metadata"]["annotations"]["scaledobject.keda.sh/transfer-hpa-ownership"] == "true"
    assert scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["name"] == hpa["metadata"]["name"]


@builds
def test_capacity(build: str) -> None:
    """The cap on connections is above the scaling target, and a full pod fits its memory."""
    cap = int(settings(built(build))["WEBSOCKET_MAX_CONNECTIONS"])
    assert cap >= 2 * 3000
    resources = container(build)["resources"]
    megabytes = {sort: int(resources[sort]["memory"].removesuffix("Mi")) for sort in ("requests", "limits")}
    readme = (K8S / "README.md").read_text()
    ((empty, a_mebibyte),) = re.findall(r"MiB = (\d+) \+ connections / (\d+)", readme)
    full = int(empty) + cap / int(a_mebibyte)
    assert full <= megabytes["requests"], "the memory request covers a full pod"
    assert megabytes["limits"] >= full + 256, "the limit leaves room for the buffers of slow clients"
    assert "cpu" not in resources["limits"]
    (microseconds,) = re.findall(r"events a second × (\d+) µs", readme)
    assert pytest.approx(10 * int(microseconds) / 1e6) == CORES_PER_CONNECTION, "the simulation uses the measured cost"


@builds
def test_timeouts(build: str) -> None:
    """Heartbeats are sent more often than any proxy's idle timeout, and no proxy limits the life of a connection."""
    documents = built(build)
    beat = float(settings(documents)["WEBSOCKET_PING_INTERVAL_SECONDS"])
    for name in _names(documents, "HTTPRoute"):
        (rule,) = one(documents, "HTTPRoute", name)["spec"]["rules"]
        plain = build == "components/gateway-route"
        assert rule.get("timeouts") == (None if plain else {"request": "0s", "backendRequest": "0s"})
    for name in _names(documents, "Ingress"):
        annotations = one(documents, "Ingress", name)["metadata"]["annotations"]
        timeouts = [value for key, value in annotations.items() if "timeout" in key]
        assert len(timeouts) == 6
        assert all(float(value.removesuffix("s")) >= max(2 * beat, longest_publish()) for value in timeouts)


def paths_from_outside(documents: list[Document]) -> list[str]:
    """Return the paths to which a gateway or an ingress controller leads."""
    routes = [one(documents, "HTTPRoute", name)["spec"]["rules"] for name in _names(documents, "HTTPRoute")]
    matches = [match for rules in routes for rule in rules for match in rule["matches"]]
    assert all(match.keys() == {"path"} for match in matches), "a rule for one method would refuse preflight requests"
    ingresses = [one(documents, "Ingress", name)["spec"]["rules"] for name in _names(documents, "Ingress")]
    paths = [path for rules in ingresses for rule in rules for path in rule["http"]["paths"]]
    return [match["path"]["value"] for match in matches] + [path["path"] for path in paths]


@builds
def test_only_clients_and_producers_from_outside(build: str) -> None:
    """No external route leads to health and metrics, because they require no key."""
    ways = ("components/gateway-route", "components/gateway-route-timeouts", "components/ingress")
    has_one = build in ways or build.startswith("overlays/production")
    assert paths_from_outside(built(build)) == (OUTSIDE if has_one else [])


@pytest.mark.parametrize("way", ["gateway-route-timeouts", "ingress"])
def test_a_route_is_one_line(way: str, tmp_path: Path) -> None:
    """Each path is one line; those for /schema and /console are there, and only have to be uncommented."""
    overlay = with_components(tmp_path, "overlays/production", lambda _: [way])
    for name in ("gateway-route/httproute.yaml", "ingress/ingress.yaml"):
        path = tmp_path / "k8s/components" / name
        path.write_text(re.sub(r"# (- .*/(schema|console))", r"\1", path.read_text()))
    documents = build_folder(overlay)
    assert sorted(paths_from_outside(documents)) == sorted([*OUTSIDE, "/schema", "/console"])


def test_a_listener_of_the_gateway(tmp_path: Path) -> None:
    """The line for the listener only has to be uncommented."""
    overlay = with_components(tmp_path, "overlays/production", lambda _: ["gateway-route"])
    path = tmp_path / "k8s/components/gateway-route/httproute.yaml"
    path.write_text(path.read_text().replace("# sectionName", "sectionName"))
    (parent,) = one(build_folder(overlay), "HTTPRoute")["spec"]["parentRefs"]
    assert parent["sectionName"] == "https"


@builds
def test_zones(build: str) -> None:
    """Only production demands zones; elsewhere a node without the label of a zone gets pods too."""
    constraints = deployment(build)["template"]["spec"]["topologySpreadConstraints"]
    zones = "DoNotSchedule" if build.startswith("overlays/production") else "ScheduleAnyway"
    assert {each["topologyKey"]: each["whenUnsatisfiable"] for each in constraints} == {
        "kubernetes.io/hostname": "ScheduleAnyway",
        "topology.kubernetes.io/zone": zones,
    }


@builds
def test_network(build: str) -> None:
    """The network policies allow only the listed peers: gateway, Prometheus and producers in; DNS and others out."""
    documents = built(build)
    policy = one(documents, "NetworkPolicy")["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    for rule in [*policy["ingress"], *policy["egress"]]:
        assert rule["ports"]
        for peer in [*rule.get("from", []), *rule.get("to", [])]:
            assert peer
            assert all(value for value in peer.values()), "an empty selector would select everything"
    in_from = {_namespace(peer) for rule in policy["ingress"] for peer in rule["from"]}
    assert in_from == {"gateway", "monitoring", None}, "None is this namespace"
    out_to = {
        (_namespace(peer), port["protocol"], port["port"])
        for rule in policy["egress"]
        for peer in rule["to"]
        for port in rule["ports"]
    }
    dns, collector = {("kube-system", sort, 53) for sort in ("UDP", "TCP")}, ("observability", "TCP", 4318)
    assert out_to >= {*dns, collector}
    # Every namespace named in other documents is one of them.
    for name in _names(documents, "HTTPRoute"):
        assert {parent["namespace"] for parent in one(documents, "HTTPRoute", name)["spec"]["parentRefs"]} <= in_from
    if build.startswith("overlays/"):
        assert one(documents, "NetworkPolicy", "default-deny")["spec"]["podSelector"] == {}
        redis = out_to - {*dns, collector}
        assert {port for _, _, port in redis} & {6379, 6380}
        endpoint = re.fullmatch(r"http://[\w-]+(?:\.(\w+))?:(\d+)", settings(documents)["OTEL_EXPORTER_OTLP_ENDPOINT"])
        assert endpoint is not None
        assert (endpoint[1], "TCP", int(endpoint[2])) in out_to


def test_dev_finds_its_neighbours() -> None:
    """In dev, Redis and Jaeger are Services of the namespace, and their policies allow the broadcaster."""
    documents = built("overlays/dev")
    (secret,) = (document for document in documents if document["kind"] == "Secret")
    addresses = [base64.b64decode(secret["data"]["REDIS_URL"]).decode()]
    addresses.append(settings(documents)["OTEL_EXPORTER_OTLP_ENDPOINT"])
    ours = deployment("overlays/dev")["template"]["metadata"]["labels"]
    for address in addresses:
        match = re.fullmatch(r"\w+://(\w+):(\d+)(/0)?", address)
        assert match is not None
        name, port = match[1], int(match[2])
        service = one(documents, "Service", name)["spec"]
        (target,) = (p["targetPort"] for p in service["ports"] if p["port"] == port)
        (rule,) = one(documents, "NetworkPolicy", name)["spec"]["ingress"]
        assert [p["port"] for p in rule["ports"]] == [target]
        assert any(matches(peer["podSelector"], ours) for peer in rule["from"])
        out = one(documents, "NetworkPolicy")["spec"]["egress"]
        template = one(documents, "Deployment", name)["spec"]["template"]
        labels = template["metadata"]["labels"]
        ports = (p for part in template["spec"]["containers"] for p in part["ports"])
        (number,) = (p["containerPort"] for p in ports if p["name"] == target)
        assert any(
            matches(peer.get("podSelector", {"matchLabels": {"": ""}}), labels)
            and number in [p["port"] for p in rule["ports"]]
            for rule in out
            for peer in rule["to"]
        )


def test_image() -> None:
    """The base and the Containerfile have the project's version, and the command starts the service."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for build in BUILDS:
        assert container(build)["image"] == f"event-broadcaster:{version}"
        assert not {"command", "args"} & set(container(build))
    text = (ROOT / "Containerfile").read_text()
    assert f"ARG VERSION={version}\n" in text
    assert re.search(r"^USER ([1-9]\d*):\1$", text, re.MULTILINE)
    assert 'ENTRYPOINT ["python3", "-m", "handlers"]\nCMD ["serve"]' in text
    for options in re.findall(r"pip install (.*)", text):
        assert {"--no-deps"} < {"--no-deps", "--require-hashes", "--no-index"} & set(options.split()), "locked packages"
    user = int(re.findall(r"^USER (\d+)", text, re.MULTILINE)[0])
    assert deployment("base")["template"]["spec"]["securityContext"]["runAsUser"] == user
    environment = dict(shlex.split(part)[0].split("=", 1) for part in re.findall(r"(HOST=\S+|PORT=\S+)", text))
    assert environment == {"HOST": "0.0.0.0", "PORT": "8000"}


def test_image_in_documents() -> None:
    """The documents name the image with the project's version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    documents = [ROOT / "README.md", *K8S.rglob("*.md")]
    named = [tag for path in documents for tag in re.findall(r"event-broadcaster:(\d[\w.]*)", path.read_text())]
    assert named
    assert set(named) == {version}


def grace(build: str) -> float:
    """Return the grace period of a pod in seconds: preStop and all that follows, until it is killed."""
    return float(deployment(build)["template"]["spec"]["terminationGracePeriodSeconds"])


def stop_seconds(build: str) -> float:
    """Return the longest time of an orderly stop, in seconds."""
    pause = container(build)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(settings(built(build))["DRAIN_SECONDS"])
    return float(pause) + drain + server.CLOSES_SECONDS + server.REQUESTS_SECONDS + FLUSH_SECONDS + LEAVE_SECONDS


def behaviors(build: str) -> list[Document]:
    """Return the scaling behaviours of a build."""
    documents = built(build)
    found = [
        one(documents, "HorizontalPodAutoscaler", n)["spec"]["behavior"]
        for n in _names(documents, "HorizontalPodAutoscaler")
    ]
    scaled = [one(documents, "ScaledObject", name)["spec"]["advanced"] for name in _names(documents, "ScaledObject")]
    return found + [advanced["horizontalPodAutoscalerConfig"]["behavior"] for advanced in scaled]


def longest_publish() -> float:
    """Return the longest time of a publish with default settings: every attempt times out, with full jitter."""
    default = Settings()
    tries = (default.broadcast_max_retries + 1) * default.position_check_seconds
    delays = (
        min(default.broadcast_base_delay_seconds * 2**k, default.broadcast_max_delay_seconds)
        for k in range(default.broadcast_max_retries)
    )
    return tries + 1.3 * sum(delays)


def _namespace(peer: Document) -> str | None:
    """Return the namespace of a network policy's peer."""
    name: str | None = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
    return name


def _names(documents: list[Document], kind: str) -> list[str]:
    return [document["metadata"]["name"] for document in documents if document["kind"] == kind]


def test_every_folder_is_built() -> None:
    """The tests build every kustomization."""
    found = {str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml")}
    assert found == {name for name in BUILDS if " + " not in name}


def test_production_finds_redis() -> None:
    """The port in the REDIS_URL of k8s/README.md is allowed by production's policy, and its CA file is mounted."""
    ((port, path),) = re.findall(r"rediss://\S+:(\d+)/0\?ssl_ca_certs=(\S+)'", (K8S / "README.md").read_text())
    out = one(built("overlays/production"), "NetworkPolicy")["spec"]["egress"]
    assert int(port) in [each["port"] for rule in out if "ipBlock" in rule["to"][0] for each in rule["ports"]]
    mounts = {mount["name"]: mount["mountPath"] for mount in container("overlays/production")["volumeMounts"]}
    assert path == f"{mounts['redis-ca']}/ca.crt"


def test_dev_runs() -> None:
    """Dev has two replicas without an autoscaler, and a Jaeger that can be reached."""
    documents = built("overlays/dev")
    assert deployment("overlays/dev")["replicas"] == 2
    (jaeger,) = one(documents, "Deployment", "jaeger")["spec"]["template"]["spec"]["containers"]
    assert jaeger["env"] == [{"name": "JAEGER_LISTEN_HOST", "value": "0.0.0.0"}]
    ports = {port["name"]: port["containerPort"] for port in jaeger["ports"]}
    assert ports == {"otlp-http": 4318, "page": 16686}, "the ports that Jaeger opens by default"
    assert {doc["kind"] for doc in documents} == {
        *("ConfigMap", "Deployment", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "Secret"),
        *("Service", "ServiceAccount"),
    }, "only resources that a plain cluster has"


def test_additions_of_the_readme(tmp_path: Path) -> None:
    """Production builds with the additions in k8s/README.md: a Secret with a hash, a label, and tolerations."""
    text, *_ = re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
    overlay = with_components(tmp_path, "overlays/production", lambda names: names)
    path = overlay / "kustomization.yaml"
    before, added = json.loads(path.read_text()), yaml.safe_load(text)
    path.write_text(json.dumps(before | added | {"patches": before["patches"] + added["patches"]}))
    (overlay / "secret.env").write_text("REDIS_URL=redis://h\n")
    documents = build_folder(overlay)
    spec = one(documents, "Deployment")["spec"]["template"]["spec"]
    secret = one(documents, "Secret")["metadata"]["name"]
    assert re.fullmatch(r"event-broadcaster-\w{10}", secret)
    assert spec["containers"][0]["envFrom"][1] == {"secretRef": {"name": secret}}
    assert [each["tolerationSeconds"] for each in spec["tolerations"]] == [30, 30]
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert one(documents, kind)["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_steps_of_production() -> None:
    """The steps in k8s/README.md use files, names and a namespace that exist, and the namespace comes first."""
    text = (K8S / "README.md").read_text()
    _, namespace, apply, _ = re.findall(r" *```sh\n(.*?)```", text, re.DOTALL)
    documents = built("overlays/production")
    assert namespace.split("\n")[0].strip() == "kubectl apply -f k8s/overlays/production/namespace.yaml"
    assert set(re.findall(r" -n (\S+)", namespace + apply)) == {one(documents, "Namespace")["metadata"]["name"]}
    paths = re.findall(r"(?: -[kf]|python3| check.py) (k8s/\S+)", namespace + apply)
    assert "k8s/overlays/production" in paths
    assert all((ROOT / path).exists() for path in paths)
    assert apply.index("check.py") < apply.index("apply -k")


def test_rollout_time_of_the_readme() -> None:
    """The time of a rollout in k8s/README.md is that of the manifests, and a second more for the start."""
    ((pod, ready),) = re.findall(r"take (\d+) s for each \(measured; (\d+) s", (K8S / "README.md").read_text())
    assert int(ready) == deployment("overlays/production")["minReadySeconds"] == int(pod) - 1


def test_readme() -> None:
    """The first commands in k8s/README.md are exactly five lines, and everything that they name exists."""
    lines = re.findall(r"```sh\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)[0].splitlines()
    assert len(lines) == 5
    documents = built("overlays/dev")
    text = " ".join(lines)
    assert set(re.findall(r" -n (\S+)", text)) == {one(documents, "Namespace")["metadata"]["name"]}
    assert set(re.findall(r"event-broadcaster:[\d.]+", text)) == {container("overlays/dev")["image"]}
    assert all((ROOT / path).exists() for path in re.findall(r" -[kf] (\S+)", text))
    assert set(re.findall(r"deploy/(\S+)", text)) == {"event-broadcaster"}
    ((service, port),) = re.findall(r"svc/(\S+) (\d+)", text)
    assert int(port) in [each["port"] for each in one(documents, "Service", service)["spec"]["ports"]]
    assert text.endswith(f"http://localhost:{port}")

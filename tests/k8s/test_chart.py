"""The Helm chart renders the objects of the kustomizations; each value has an effect, and wrong ones are refused."""

import json
import re
import shutil
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from handlers.settings import Settings
from tests import processes
from tests.k8s.chart import FOR, NOT_IN_SETTINGS, SCHEMA, options, program, render, settings_schema
from tests.k8s.crds import SCHEMAS
from tests.k8s.test_schemas import VERSIONS
from tests.k8s.tools import BUILDS, CHART, K8S, MONITORING, ROOT, Document, built, one, run, settings

EXAMPLE = CHART / "examples/production.yaml"
REDIS = {"to": [{"ipBlock": {"cidr": "192.0.2.10/32"}}], "ports": [{"port": 6380, "protocol": "TCP"}]}
POLICY: Document = {"networkPolicy": {"enabled": True, "egress": [REDIS]}}
GATEWAY: Document = {
    "gateway": {
        "enabled": True,
        "parentRefs": [{"name": "gateway", "namespace": "gateway"}],
        "hostnames": ["events.example.org"],
    }
}
INGRESS: Document = {"ingress": {"enabled": True, "hosts": ["events.example.org"], "tlsSecret": "events-example-org"}}
MONITORED: Document = {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}
INTERNAL: Document = {"internalPort": 8081}
# The values that render each build, for production after those of the example. The builds of `overlays/dev` bring Redis
# and Jaeger, which the chart leaves to others.
SAME: dict[str, Document] = {
    "base": {},
    "components/default-deny": {},
    "components/gateway-route": {**GATEWAY, "gateway.timeouts": False},
    "components/gateway-route-timeouts": GATEWAY,
    "components/hpa-keda": {"autoscaling": {"by": "keda"}},
    "components/hpa-prometheus-adapter": {"autoscaling": {"by": "connections"}},
    "components/ingress": INGRESS,
    "components/internal-port": INTERNAL,
    "components/service-monitor": {"serviceMonitor": {"enabled": True}},
    "overlays/production": {},
    "overlays/production + internal-port": INTERNAL,
    MONITORING: MONITORED,
}

# What differs, and why.
LEFT_OUT = {
    ("Namespace", "event-broadcaster"),  # it holds the release, so it is not a part of it
    ("NetworkPolicy", "default-deny"),  # it is for the whole namespace, not for the release
}
# Helm's conventions. `instance` also tells two releases apart, so the selectors have it.
HELM_LABELS = {
    *("helm.sh/chart", "app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"),
}
# kustomize gives them to the objects of base and components, the chart to all, so that `kubectl get -l` finds them.
COMMON_LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/part-of"}


def from_kustomize(build: str) -> dict[tuple[str, str], Document]:
    """Return the objects of a build by kind and name, without what only kustomize has."""
    documents = built(build)
    # A hash of the content is in the name of the ConfigMap; the chart has it in an annotation of the pods.
    names = {doc["metadata"]["name"] for doc in documents if doc["kind"] == "ConfigMap"}
    text = json.dumps(documents)
    for name in names:
        text = text.replace(f'"{name}"', json.dumps(re.sub("-[0-9a-z]{10}$", "", name)))
    objects = _by_name(json.loads(text))
    for each in objects.values():
        each["metadata"].pop("namespace", None)  # Helm sends the objects to the namespace of the release
        _without(each["metadata"]["labels"], COMMON_LABELS)
    if not build.startswith("overlays/"):
        # The overlays add the rule for Redis; the chart refuses a policy that has no such rule.
        objects["NetworkPolicy", "event-broadcaster"]["spec"]["egress"].append(REDIS)
    return {key: each for key, each in objects.items() if key not in LEFT_OUT}


def from_helm(documents: list[Document]) -> dict[tuple[str, str], Document]:
    """Return the objects of a release by kind and name, without what only Helm has."""
    objects = _by_name(documents)
    for each in objects.values():
        assert set(each["metadata"]["labels"]) >= HELM_LABELS | COMMON_LABELS
        _without(each["metadata"]["labels"], COMMON_LABELS)
        _without(each, HELM_LABELS)
    annotations = objects["Deployment", "event-broadcaster"]["spec"]["template"]["metadata"].pop("annotations")
    assert set(annotations) == {"checksum/settings"}
    return objects


def _by_name(documents: list[Document]) -> dict[tuple[str, str], Document]:
    objects = {(each["kind"], each["metadata"]["name"]): each for each in documents}
    assert len(objects) == len(documents)
    for each in objects.values():
        each["metadata"].setdefault("labels", {})
    # A patch puts its own first; the order has no meaning.
    (container,) = objects["Deployment", "event-broadcaster"]["spec"]["template"]["spec"]["containers"]
    container["ports"].sort(key=lambda port: port["name"])
    return objects


def _without(value: Any, names: set[str]) -> None:
    """Remove these keys at any depth."""
    if isinstance(value, dict):
        for key in list(value):
            if key in names:
                del value[key]
            else:
                _without(value[key], names)
    elif isinstance(value, list):
        for each in value:
            _without(each, names)


@pytest.mark.parametrize("build", sorted(SAME))
def test_same_objects(build: str) -> None:
    """The chart renders the objects that kustomize builds."""
    first = EXAMPLE if build.startswith("overlays/") else POLICY
    rendered = from_helm(render(first, SAME[build]))
    expected = from_kustomize(build)
    for key, each in expected.items():
        assert rendered[key] == each, key
    assert rendered.keys() == expected.keys()


def test_every_build_is_compared() -> None:
    """Every kustomization has values that render the same, except the one that brings Redis and Jaeger."""
    assert set(SAME) == {build for build in BUILDS if not build.startswith("overlays/dev")}


# Values that turn every object on, and for each value of the chart another one than in them.
ON: Document = {
    **POLICY,
    **GATEWAY,
    **INGRESS,
    **MONITORED,
    "serviceMonitor": {"enabled": True},
    "autoscaling": {"by": "keda"},
}
TEXTS = {"example.org/team": "a"}
TOLERATION = {"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}
SPREAD = {"topologyKey": "example.org/rack", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}
TERMS = [{"matchExpressions": [{"key": "example.org/disk", "operator": "Exists"}]}]
OTHER: Document = {
    "fullnameOverride": "other",
    "commonLabels": TEXTS,
    "image.registry": "registry.example.org/team",
    "image.repository": "other",
    "image.tag": "2.0.0",
    "image.digest": f"sha256:{'0' * 64}",
    "image.pullPolicy": "Always",
    "image.pullSecrets": [{"name": "credentials"}],
    "existingSecret": "",
    "extraEnv": [{"name": "REDIS_URL", "valueFrom": {"secretKeyRef": {"name": "redis", "key": "url"}}}],
    "settings.HOST": "10.0.0.1",
    "settings.PORT": 9000,
    "settings.LOG_FORMAT": "text",
    "settings.DRAIN_SECONDS": 0.5,
    "settings.WEBSOCKET_PING_INTERVAL_SECONDS": 20,
    "settings.WEBSOCKET_MAX_AGE_SECONDS": 0,
    "settings.WEBSOCKET_MAX_CONNECTIONS": 1048576,
    "settings.OTEL_SERVICE_NAME": "other",
    "settings.OTEL_METRICS_EXPORTER": "otlp",
    "internalPort": 8081,
    "replicas": {"replicas": 5, "autoscaling.by": "none"},
    "autoscaling.by": "connections",
    "autoscaling.minReplicas": 4,
    "autoscaling.maxReplicas": 40,
    "autoscaling.cpuPercent": 50,
    "autoscaling.connections": 2500,
    "autoscaling.prometheusAddress": "http://prometheus.elsewhere:9090",
    "resources.requests.cpu": "1",
    "resources.requests.memory": "1Gi",
    "resources.requests.ephemeral-storage": "1Gi",
    "resources.limits.memory": "2Gi",
    "resources.limits.ephemeral-storage": "2Gi",
    "podDisruptionBudget.enabled": False,
    "podDisruptionBudget.maxUnavailable": "25%",
    "serviceAccount.create": False,
    "serviceAccount.name": "other",
    "serviceAccount.annotations": TEXTS,
    "service.type": "LoadBalancer",
    "service.port": 8080,
    "service.annotations": TEXTS,
    "paths": ["/ws/events", "/broadcast", "/schema"],
    "ingress.enabled": False,
    "ingress.className": "nginx",
    "ingress.hosts": ["one.example.org", "two.example.org"],
    "ingress.tlsSecret": "",
    "ingress.annotations": {"nginx.org/proxy-read-timeout": "240s"},
    "gateway.enabled": False,
    "gateway.annotations": TEXTS,
    "gateway.parentRefs": [{"name": "gateway", "sectionName": "https"}],
    "gateway.hostnames": ["one.example.org", "two.example.org"],
    "gateway.timeouts": False,
    "networkPolicy.enabled": False,
    "networkPolicy.gatewayNamespace": "",
    "networkPolicy.prometheusNamespace": "",
    "networkPolicy.collectorNamespace": "",
    "networkPolicy.egress": [REDIS, REDIS],
    "networkPolicy.extraIngress": [{"from": [{"podSelector": {"matchLabels": TEXTS}}]}],
    "serviceMonitor.enabled": False,
    "serviceMonitor.labels": {"release": "prometheus"},
    "serviceMonitor.interval": "30s",
    "serviceMonitor.scrapeTimeout": "10s",
    "prometheusRule.enabled": False,
    "prometheusRule.labels": {"release": "prometheus"},
    "dashboard.enabled": False,
    "dashboard.labels": {"grafana_dashboard": "2"},
    "podLabels": TEXTS,
    "podAnnotations": TEXTS,
    "nodeSelector": TEXTS,
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": TERMS}}},
    "tolerations": [TOLERATION],
    "priorityClassName": "high",
    "topologySpreadConstraints": [SPREAD],
    "podSecurityContext.runAsNonRoot": False,
    "podSecurityContext.runAsUser": 1000,
    "podSecurityContext.runAsGroup": 1000,
    "podSecurityContext.seccompProfile.type": "Unconfined",
    "securityContext.privileged": True,
    "securityContext.allowPrivilegeEscalation": True,
    "securityContext.readOnlyRootFilesystem": False,
    "securityContext.capabilities.drop": ["NET_RAW"],
    "extraVolumes": [{"name": "redis-ca", "configMap": {"name": "redis-ca"}}],
    "extraVolumeMounts": [{"name": "redis-ca", "mountPath": "/etc/redis-ca", "readOnly": True}],
}


@cache
def rendered_on() -> str:
    """Return the objects of a release with everything turned on, as JSON."""
    return json.dumps(render(ON))


def values() -> Document:
    """Return the default values of the chart."""
    read: Document = yaml.safe_load((CHART / "values.yaml").read_text())
    return read


def paths(value: Any, prefix: str = "") -> list[str]:
    """Return the paths of all values; a list or an empty mapping is one value, and so are labels and annotations."""
    if not isinstance(value, dict) or not value or prefix.endswith(("labels.", "annotations.")):
        return [prefix.removesuffix(".")]
    return [path for key, each in value.items() for path in paths(each, f"{prefix}{key}.")]


def validate(document: Document, version: str = VERSIONS[-1]) -> None:
    """Raise an error if an object is not valid for Kubernetes."""
    if schema := SCHEMAS.get((document["apiVersion"], document["kind"])):
        jsonschema.Draft202012Validator(schema).validate(document)
    else:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("path", OTHER)
def test_every_value_has_an_effect(path: str) -> None:
    """Each value changes the objects, and they are valid for Kubernetes."""
    other = OTHER[path] if path == "replicas" else {path: OTHER[path]}
    before = json.loads(rendered_on())
    after = render(ON, other)
    changed = [document for document in after if document not in before]
    assert len(after) < len(before) if path.endswith(".enabled") else changed
    for document in changed:
        validate(document)


def test_other_values_are_complete() -> None:
    """The test of the effects knows every value."""
    assert list(OTHER) == paths(values())


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_valid(version: str) -> None:
    """The objects are valid for the oldest and the newest Kubernetes, with all turned on and with the example."""
    for document in [*json.loads(rendered_on()), *render(EXAMPLE), *render()]:
        validate(document, version)


def test_lint() -> None:
    """`helm lint` finds no problem, with the defaults and with the example."""
    for chosen in ([], ["--values", EXAMPLE]):
        assert "0 chart(s) failed" in run(program(), "lint", "--strict", *FOR, CHART, *chosen)


def test_version() -> None:
    """The versions of the chart and of the service are the project's, and a Kubernetes that is too old is refused."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert chart["kubeVersion"] == f">={VERSIONS[0]}.0-0"
    assert "incompatible with Kubernetes v1.29" in refused({}, version="1.29")


def refused(change: Document, version: str = FOR[1]) -> str:
    """Return the error of helm for wrong values, or for a cluster of this version."""
    command = [program(), "template", "x", CHART, *options(change), "--kube-version", version]
    done = processes.run(command)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        ({"replica": 2}, "replica", "allowed"),
        ({"image.digets": "x"}, "image digets", "allowed"),
        ({"image.digest": "abc"}, "image digest", "match pattern"),
        ({"settings.HISTORY_SIZES": 5}, "settings HISTORY_SIZES", "allowed"),
        ({"settings.HISTORY_SIZE": "many"}, "settings HISTORY_SIZE", "integer"),
        ({"settings.HISTORY_SIZE": 0}, "settings HISTORY_SIZE", "1"),
        ({"settings.LOG_FORMAT": "xml"}, "settings LOG_FORMAT", "must be one of"),
        ({"settings.API_KEYS": "secret"}, "settings API_KEYS", "allowed"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels name", "alse"),
        ({"autoscaling.by": "memory"}, "autoscaling by", "must be one of"),
        ({"ingress.enabled": True}, "ingress hosts", "1"),
        ({"gateway.enabled": True}, "gateway parentRefs", "1"),
        ({"networkPolicy.enabled": True}, "networkPolicy egress", "1"),
    ],
)
def test_refusals(change: Document, place: str, reason: str) -> None:
    """A wrong value is refused, and the error names its place; each version of helm words it differently."""
    error = refused(change)
    assert any(all(name in line for name in [*place.split(), reason]) for line in error.splitlines()), error


def test_schema_has_every_setting() -> None:
    """The schema has every setting of `serve --help` that is not a secret, with its type and range."""
    schema = json.loads(SCHEMA.read_text())["properties"]["settings"]["properties"]
    assert schema == settings_schema(), "run: python -m tests.k8s.chart"
    assert {"HISTORY_SIZE", "LOG_LEVEL", "ALLOWED_ORIGINS"} <= set(schema)
    assert not NOT_IN_SETTINGS & set(schema)


def test_schema_and_values_name_the_same() -> None:
    """Every key that the schema allows is in values.yaml, where a comment explains it."""
    schema = json.loads(SCHEMA.read_text())["properties"]
    assert set(schema) - {"global"} == set(values())  # Helm adds `global`
    for name in set(values()) - {"settings", "resources"}:
        if schema[name].get("additionalProperties") is False:
            assert set(schema[name]["properties"]) == set(values()[name]), name
    for block in (CHART / "values.yaml").read_text().split("\n\n"):
        assert re.search("^ *# ", block, re.MULTILINE), block


def test_settings_reach_the_service() -> None:
    """Numbers are written so that the service reads them, and a changed setting changes the pods."""
    change = {"settings.HISTORY_SIZE": 16777216, "settings.BROADCAST_BASE_DELAY_SECONDS": 0.25, "internalPort": 8081}
    changed = render(change)
    variables = settings(changed)
    assert variables["INTERNAL_PORT"] == "8081"
    read = Settings.from_environment(variables)
    assert (read.history_size, read.broadcast_base_delay_seconds, read.port) == (16777216, 0.25, 8000)
    sums = [
        one(documents, "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        for documents in (changed, render(), render({"service.port": 81}))
    ]
    assert sums[0] != sums[1] == sums[2]


@pytest.mark.parametrize("seconds", [0, 30, 100.5, None])
def test_drain(seconds: float | None) -> None:
    """The grace period, the pace of rollouts and that of scale-downs follow DRAIN_SECONDS."""
    documents = render({"settings.DRAIN_SECONDS": seconds})
    deployment = one(documents, "Deployment")["spec"]
    grace = deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    # A null removes the chart's own value, so the default of the service applies.
    assert 44 < grace - (Settings().drain_seconds if seconds is None else seconds) <= 46
    assert deployment["minReadySeconds"] >= grace
    down = one(documents, "HorizontalPodAutoscaler")["spec"]["behavior"]["scaleDown"]
    assert down["policies"][0]["periodSeconds"] >= grace
    assert down["stabilizationWindowSeconds"] >= 2 * down["policies"][0]["periodSeconds"]


def test_releases_are_apart() -> None:
    """Two releases share no name and no pod; a long name of a release is cut to one that Kubernetes takes."""
    one_release, other = render(ON, release="a"), render(ON, release="b" * 53)
    names = [{(each["kind"], each["metadata"]["name"]) for each in documents} for documents in (one_release, other)]
    assert not names[0] & names[1]
    assert ("Deployment", "a-event-broadcaster") in names[0]
    for document in other:
        validate(document)
        assert len(document["metadata"]["name"]) <= 63
    selector = one(one_release, "Service", "a-event-broadcaster")["spec"]["selector"]
    labels = one(other, "Deployment", "b")["spec"]["template"]["metadata"]["labels"]
    assert not selector.items() <= labels.items()
    # Everything that refers to the name of the objects follows it.
    assert "event-broadcaster" not in {
        *_texts([each["spec"] for each in one_release if each["kind"] in ("HTTPRoute", "ScaledObject", "Ingress")])
    }


def test_names_that_look_like_numbers() -> None:
    """Names of digits alone stay texts."""
    names = {
        "existingSecret": "1",
        "priorityClassName": "2",
        "serviceAccount.name": "3",
        "networkPolicy.gatewayNamespace": "4",
        "networkPolicy.prometheusNamespace": "5",
        "networkPolicy.collectorNamespace": "6",
        "ingress.className": "7",
        "ingress.tlsSecret": "8",
    }
    for document in render(ON, names, release="9"):
        validate(document)


def test_a_value_can_be_removed() -> None:
    """A null removes a default, such as the user, which OpenShift chooses itself."""
    documents = render({"podSecurityContext.runAsUser": None, "resources.requests.cpu": None})
    pod = one(documents, "Deployment")["spec"]["template"]["spec"]
    assert set(pod["securityContext"]) == {"runAsNonRoot", "runAsGroup", "seccompProfile"}
    assert set(pod["containers"][0]["resources"]["requests"]) == {"memory", "ephemeral-storage"}


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


def test_queries_follow_the_namespace() -> None:
    """Alerts and scaling queries select the namespace of the release."""
    chosen = options({"autoscaling.by": "keda", "prometheusRule.enabled": True})
    text = run(program(), "template", "event-broadcaster", CHART, *FOR, "--namespace", "elsewhere", *chosen)
    assert text.count('namespace="elsewhere"') == 4
    assert 'namespace="event-broadcaster"' not in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["create secret generic event-broadcaster", "and from nowhere else", "Enable `networkPolicy`"]),
        (ON, ["wss://events.example.org/ws/events through the Ingress", "after 75 seconds"]),
        ({"existingSecret": "", "autoscaling.by": "connections"}, ["come from `extraEnv`", "`serviceMonitor` is not"]),
    ],
)
def test_notes(change: Document, expected: list[str], tmp_path: Path) -> None:
    """The notes after an installation name the next steps for these values."""
    chart = shutil.copytree(CHART, tmp_path / "chart")
    # Helm shows the notes only after it has reached a cluster.
    shown = (
        'kind: Notes\nmetadata: {name: notes}\ntext: {{ include (print .Template.BasePath "/NOTES.txt") . | toJson }}'
    )
    (chart / "templates/notes.yaml").write_text(shown)
    text = one(render(change, chart=chart), "Notes", "notes")["text"]
    for each in expected:
        assert each in text, text
    assert not re.search(r"\n\n\n|[ \t]\n|\{\{|<no value>", text), text
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "kubectl -n event-broadcaster rollout status deploy/event-broadcaster" in text


def test_kustomize_files_are_not_packaged(tmp_path: Path) -> None:
    """A package of the chart has the files that it reads, and nothing that is for kustomize alone."""
    run(program(), "package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.iterdir()
    shutil.unpack_archive(package, tmp_path, filter="data")
    files = {path.name for path in (tmp_path / "event-broadcaster/files").iterdir()}
    assert files == {"alerts.yaml", "dashboard.json"}
    assert render(ON, chart=tmp_path / "event-broadcaster") == json.loads(rendered_on())


def test_readme() -> None:
    """The command in k8s/README.md that installs the chart renders the objects of the example."""
    (arguments,) = re.findall(r"^helm upgrade --install (.*)$", (K8S / "README.md").read_text(), re.MULTILINE)
    text = run(program(), "template", *arguments.split(), *FOR, cwd=ROOT)
    assert [each for each in yaml.safe_load_all(text) if each] == render(EXAMPLE)

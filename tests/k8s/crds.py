"""JSON schemas of the custom resources in the manifests.

kubernetes-validate has only the resources of Kubernetes itself. These schemas are written from the API references,
which are named above each. They allow only the fields that the manifests use, so that a misspelt field is found.
"""

from typing import Any

__all__ = ["SCHEMAS"]

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_NUMBER_TEXT: Schema = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?$"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed(required: Schema, optional: Schema | None = None) -> Schema:
    """Return the schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def _resource(spec: Schema) -> Schema:
    metadata = _closed({"name": _TEXT}, {"namespace": _TEXT, "labels": _TEXTS, "annotations": _TEXTS})
    return _closed({"apiVersion": _TEXT, "kind": _TEXT, "metadata": metadata, "spec": spec})


# The format of a duration in the Gateway API (GEP-2257).
_DURATION: Schema = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}

# gateway-api.sigs.k8s.io/reference/spec: HTTPRoute; durations are GEP-2257. `group`, `kind` and `weight` have defaults,
# and are required here all the same: a field that the API server fills in conflicts when a server-side apply follows.
_HTTP_ROUTE = _resource(
    _closed(
        {
            "parentRefs": _list(
                _closed(
                    {"group": {"const": "gateway.networking.k8s.io"}, "kind": {"const": "Gateway"}, "name": _TEXT},
                    {"namespace": _TEXT, "sectionName": _TEXT},
                )
            ),
            "hostnames": _list(_TEXT),
            "rules": _list(
                _closed(
                    {
                        "matches": _list(
                            _closed({"path": _closed({"type": {"enum": ["PathPrefix", "Exact"]}, "value": _TEXT})})
                        ),
                        "backendRefs": _list(
                            _closed(
                                {
                                    "group": {"const": ""},
                                    "kind": {"const": "Service"},
                                    "name": _TEXT,
                                    "port": _COUNT,
                                    "weight": _COUNT,
                                }
                            )
                        ),
                    },
                    {"timeouts": _closed({"request": _DURATION, "backendRequest": _DURATION})},
                )
            ),
        }
    )
)

_POLICIES = _list(
    _closed({"type": {"enum": ["Pods", "Percent"]}, "value": _COUNT, "periodSeconds": {"minimum": 1, "maximum": 1800}})
)
_RULES = _closed(
    {
        "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        "selectPolicy": {"enum": ["Max", "Min", "Disabled"]},
        "policies": _POLICIES,
    }
)
# keda.sh/docs/latest/reference/scaledobject-spec, .../scalers/prometheus, .../scalers/cpu; all metadata are strings
_SCALED_OBJECT = _resource(
    _closed(
        {
            "scaleTargetRef": _closed({"apiVersion": _TEXT, "kind": _TEXT, "name": _TEXT}),
            "pollingInterval": _COUNT,
            "minReplicaCount": {"type": "integer", "minimum": 1},
            "maxReplicaCount": _COUNT,
            "advanced": _closed(
                {
                    "horizontalPodAutoscalerConfig": _closed(
                        {"name": _TEXT, "behavior": _closed({"scaleUp": _RULES, "scaleDown": _RULES})}
                    )
                }
            ),
            "triggers": _list(
                {
                    "oneOf": [
                        _closed(
                            {
                                "type": {"const": "cpu"},
                                "metricType": {"const": "Utilization"},
                                "metadata": _closed({"value": _NUMBER_TEXT}),
                            }
                        ),
                        _closed(
                            {
                                "type": {"const": "prometheus"},
                                "name": _TEXT,
                                "metricType": {"enum": ["Value", "AverageValue"]},
                                "metadata": _closed(
                                    {
                                        "serverAddress": _TEXT,
                                        "query": _TEXT,
                                        "threshold": _NUMBER_TEXT,
                                        "ignoreNullValues": {"enum": ["true", "false"]},
                                    }
                                ),
                            }
                        ),
                    ]
                }
            ),
        }
    )
)

_PROMETHEUS_DURATION: Schema = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}
# prometheus-operator.dev/docs/api-reference: ServiceMonitor, PrometheusRule (promtool checks its rules)
_SERVICE_MONITOR = _resource(
    _closed(
        {
            "selector": _closed({"matchLabels": _TEXTS}),
            "endpoints": _list(
                _closed(
                    {
                        "path": {"type": "string", "pattern": "^/"},
                        "interval": _PROMETHEUS_DURATION,
                        "scrapeTimeout": _PROMETHEUS_DURATION,
                    },
                    {"port": _TEXT, "targetPort": _TEXT},
                )
            ),
        }
    )
)
_PROMETHEUS_RULE = _resource(
    _closed(
        {
            "groups": _list(
                _closed(
                    {
                        "name": _TEXT,
                        "rules": _list(
                            _closed(
                                {"alert": _TEXT, "expr": _TEXT, "labels": _TEXTS, "annotations": _TEXTS},
                                {"for": _PROMETHEUS_DURATION},
                            )
                        ),
                    }
                )
            )
        }
    )
)

SCHEMAS: dict[tuple[str, str], Schema] = {
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _HTTP_ROUTE,
    ("keda.sh/v1alpha1", "ScaledObject"): _SCALED_OBJECT,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): _PROMETHEUS_RULE,
}

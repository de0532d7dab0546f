"""The algorithm of the HorizontalPodAutoscaler v2, as a function of time: the replicas that it would ask for.

Written from kubernetes/kubernetes, pkg/controller/podautoscaler (replica_calculator.go: calcPlainMetricReplicas,
groupPods, getUsageRatioReplicaCount; horizontal.go: computeReplicasForMetrics, stabilizeRecommendationWithBehaviors,
calculateScaleUpLimitWithScalingRules, calculateScaleDownLimitWithBehaviors), as of Kubernetes 1.30 and later, and from
kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale. Left out: scaling to zero, `Object` metrics.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

__all__ = ["Autoscaler", "Metric", "Pod", "metrics_of"]

TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance


class Pod(NamedTuple):
    """A pod as seen by the controller, which never counts a terminating pod, nor an unready one for CPU."""

    name: str
    phase: Literal["pending", "running", "terminating"] = "running"
    ready: bool = True


class Metric(NamedTuple):
    """One entry of `metrics`: how it is read, and its target value per pod."""

    name: str
    kind: Literal["cpu", "pods", "external-value"]
    target: float


# Per metric: values by pod, or one value ("external-value"), or None if it cannot be read.
Samples = Mapping[str, Mapping[str, float] | float | None]


def metrics_of(spec: Mapping[str, Any], cpu_request: float) -> list[Metric]:
    """Return the metrics of an HPA, or of a ScaledObject from which KEDA creates one; CPU is in cores."""
    found = []
    for metric in spec.get("metrics", []):
        if metric["type"] == "Resource":
            utilization = metric["resource"]["target"]["averageUtilization"]
            found.append(Metric("cpu", "cpu", cpu_request * utilization / 100))
        else:
            found.append(
                Metric(metric["pods"]["metric"]["name"], "pods", _quantity(metric["pods"]["target"]["averageValue"]))
            )
    for trigger in spec.get("triggers", []):
        if trigger["type"] == "cpu":
            found.append(Metric("cpu", "cpu", cpu_request * float(trigger["metadata"]["value"]) / 100))
        else:
            assert trigger["metricType"] == "Value"
            found.append(Metric(trigger["name"], "external-value", float(trigger["metadata"]["threshold"])))
    return found


class Autoscaler:
    """One HPA with its history; `reconcile` is one iteration of the controller, every 15 s by default."""

    def __init__(self, metrics: list[Metric], behavior: Mapping[str, Any], low: int, high: int) -> None:
        self._metrics = metrics
        self._up, self._down = behavior["scaleUp"], behavior["scaleDown"]
        self._low, self._high = low, high
        self._recommendations: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []

    def reconcile(self, now: float, current: int, pods: Iterable[Pod], samples: Samples) -> int:
        """Return the number of replicas that the controller asks for."""
        if not self._recommendations:  # the controller starts with the current number
            self._recommendations.append((now, current))
        if current > self._high or current < self._low:
            wanted = min(max(current, self._low), self._high)
        else:
            proposed = self._proposed(current, list(pods), samples)
            if proposed is None:
                return current
            wanted = self._limited(now, current, self._stabilized(now, current, proposed))
        if wanted != current:
            self._changes.append((now, wanted - current))
        return wanted

    def _proposed(self, current: int, pods: list[Pod], samples: Samples) -> int | None:
        """Return the largest proposal of all metrics; None if there is none, or for a scale-down if one is missing."""
        answers = [_proposal(metric, current, pods, samples[metric.name]) for metric in self._metrics]
        known = [answer for answer in answers if answer is not None]
        if not known or (len(known) < len(answers) and max(known) < current):
            return None
        return max(known)

    def _stabilized(self, now: float, current: int, proposed: int) -> int:
        """Limit a scale-up to the smallest and a scale-down to the largest recommendation within the window."""
        up = down = proposed
        for at, recommended in self._recommendations:
            if at > now - self._up["stabilizationWindowSeconds"]:
                up = min(up, recommended)
            if at > now - self._down["stabilizationWindowSeconds"]:
                down = max(down, recommended)
        self._recommendations.append((now, proposed))
        return min(max(current, up), down)

    def _limited(self, now: float, current: int, wanted: int) -> int:
        """Limit the change by the policies and by the bounds."""
        if wanted > current:
            limits = [self._reach(now, current, policy, +1) for policy in self._up["policies"]]
            limit = max(limits) if self._up["selectPolicy"] == "Max" else min(limits)
            return min(wanted, self._high, max(limit, current))
        if wanted < current:
            limits = [self._reach(now, current, policy, -1) for policy in self._down["policies"]]
            limit = min(limits) if self._down["selectPolicy"] == "Max" else max(limits)
            return max(wanted, self._low, min(limit, current))
        return current

    def _reach(self, now: float, current: int, policy: Mapping[str, Any], sign: int) -> int:
        """Return the number of replicas that one policy allows, relative to that at the start of its period."""
        begin = current - sum(change for at, change in self._changes if at > now - policy["periodSeconds"])
        if policy["type"] == "Pods":
            return int(begin + sign * policy["value"])
        scaled = begin * (1 + sign * policy["value"] / 100)
        return math.ceil(scaled) if sign > 0 else int(scaled)


def _proposal(metric: Metric, current: int, pods: list[Pod], sample: Mapping[str, float] | float | None) -> int | None:
    if sample is None:
        return None
    if isinstance(sample, Mapping):
        return _by_pod(metric, current, pods, sample)
    ratio = sample / metric.target
    if abs(1 - ratio) <= TOLERANCE:
        return current
    return math.ceil(ratio * sum(pod.phase == "running" and pod.ready for pod in pods))


def _by_pod(metric: Metric, current: int, pods: list[Pod], sample: Mapping[str, float]) -> int | None:
    """Use the average over pods; pods without a sample count against the change that the others suggest."""
    alive = [pod for pod in pods if pod.phase != "terminating"]
    unready = {pod.name for pod in alive if pod.phase == "pending" or (metric.kind == "cpu" and not pod.ready)}
    missing = {pod.name for pod in alive} - unready - set(sample)
    values = {pod.name: sample[pod.name] for pod in alive if pod.name not in unready | missing}
    if not values:
        return None
    ratio = sum(values.values()) / len(values) / metric.target
    rebalance = bool(unready) and ratio > 1
    if not rebalance and not missing:
        return current if abs(1 - ratio) <= TOLERANCE else math.ceil(ratio * len(values))
    values |= dict.fromkeys(missing, metric.target if ratio < 1 else 0.0)
    if rebalance:
        values |= dict.fromkeys(unready, 0.0)
    again = sum(values.values()) / len(values) / metric.target
    if abs(1 - again) <= TOLERANCE or (ratio < 1) != (again < 1):
        return current
    wanted = math.ceil(again * len(values))
    return current if (again < 1 and wanted > current) or (again > 1 and wanted < current) else wanted


def _quantity(text: str) -> float:
    factor = {"m": 0.001, "k": 1000}.get(text[-1], 1)
    return float(text.rstrip("mk")) * factor

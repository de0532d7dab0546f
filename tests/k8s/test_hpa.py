"""Simulations of the manifests' autoscaling: a day, a reconnect storm, a rollout, outages of metrics, random loads."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.k8s import tools
from tests.k8s.fleet import Fleet, Times
from tests.k8s.hpa import Autoscaler, Metric, Pod, metrics_of
from tests.k8s.tools import built, one

SCALERS = ["base", "components/hpa-prometheus-adapter", "components/hpa-keda", "overlays/production"]
scalers = pytest.mark.parametrize("build", SCALERS)
# Builds that scale by connections. The base scales by CPU, which is proportional to connections in the simulation.
by_connections = pytest.mark.parametrize("build", SCALERS[1:])

PER_POD = 3000
MINUTE, HOUR = 60.0, 3600.0

Demand = Callable[[float], float]
PLAIN: dict[str, Any] = {
    "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                "policies": [{"type": "Percent", "value": 900, "periodSeconds": 60}]},
    "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                  "policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}]},
}  # fmt: skip


def fleet(build: str, replicas: int) -> Fleet:
    """Return a fleet with the scaler, times and settings of a build."""
    documents = built(build)
    deployment = one(documents, "Deployment")["spec"]
    spec = deployment["template"]["spec"]
    (container,) = spec["containers"]
    variables = tools.settings(documents)
    times = Times(
        grace=spec["terminationGracePeriodSeconds"],
        pre_stop=container["lifecycle"]["preStop"]["sleep"]["seconds"],
        drain=float(variables["DRAIN_SECONDS"]),
        min_ready=deployment["minReadySeconds"],
        max_age=float(variables["WEBSOCKET_MAX_AGE_SECONDS"]),
    )
    cpu = int(container["resources"]["requests"]["cpu"].removesuffix("m")) / 1000
    if any(document["kind"] == "ScaledObject" for document in documents):
        scaled = one(documents, "ScaledObject")["spec"]
        behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        low, high = scaled["minReplicaCount"], scaled["maxReplicaCount"]
    else:
        scaled = one(documents, "HorizontalPodAutoscaler")["spec"]
        behavior, low, high = scaled["behavior"], scaled["minReplicas"], scaled["maxReplicas"]
    return Fleet(Autoscaler(metrics_of(scaled, cpu), behavior, low, high), times, max(low, replicas))


def turns(wanted: Sequence[tuple[float, int]]) -> int:
    """Return how often the number of replicas changes direction; 0 if it only rises or only falls."""
    steps = [after - before for (_, before), (_, after) in pairwise(wanted) if after != before]
    return sum((first > 0) != (second > 0) for first, second in pairwise(steps))


def overlapping(drains: Sequence[tuple[float, float]]) -> list[Any]:
    """Return the pairs of drains that overlap in time."""
    return [pair for pair in pairwise(sorted(drains)) if pair[1][0] < pair[0][1]]


def lowered(wanted: Sequence[tuple[float, int]], begin: float, end: float) -> bool:
    """Return True if the number of replicas fell between two times."""
    within = [replicas for at, replicas in wanted if begin <= at < end]
    return any(after < before for before, after in pairwise(within))


# -- behaviour of the manifests -------------------------------------------------------------------------------------


@scalers
def test_a_day(build: str) -> None:
    """Over a day, replicas rise once and fall once, no pod exceeds its cap, and no client loses its connection."""
    world = fleet(build, 2)
    top = 20_000

    def day(now: float) -> float:
        up = 1 / (1 + math.exp(-(now - 2 * HOUR) / (15 * MINUTE)))
        down = 1 / (1 + math.exp(-(now - 8 * HOUR) / (15 * MINUTE)))
        return 1500 + top * (up - down)

    fullest = 0.0
    while world.now < 14 * HOUR:
        world.run(5 * MINUTE, day)
        fullest = max(fullest, world.fullest)
    numbers = [replicas for _, replicas in world.wanted]
    assert turns(world.wanted) == 1
    assert max(numbers) >= (1500 + top) / (PER_POD * 1.4)
    assert numbers[-1] == numbers[0]
    # The base scales by CPU and not by connections, so it may come closer to the cap.
    assert fullest <= (1.0 if build == "base" else 0.9) * float(
        tools.settings(built(build))["WEBSOCKET_MAX_CONNECTIONS"]
    )
    assert not overlapping(world.drains)
    assert world.lost_clients < 1


@scalers
def test_a_reconnect_storm(build: str) -> None:
    """If all clients disconnect for five minutes and return at once, no pod is removed or added."""
    world = fleet(build, 5)
    world.run(30 * MINUTE, lambda _: 13_500)
    before = world.replicas
    begin = world.now
    world.run(5 * MINUTE, lambda _: 0)
    world.run(60 * MINUTE, lambda now: 13_500 * min(1, (now - begin - 5 * MINUTE) / 30))
    assert {replicas for at, replicas in world.wanted if at > begin} == {before}


@scalers
def test_noise(build: str) -> None:
    """A load that rises and falls by a quarter every few minutes does not change the number of pods back and forth."""
    world = fleet(build, 4)
    world.run(6 * HOUR, lambda now: 10_000 * (1 + 0.25 * math.sin(now / 90)))
    assert turns(world.wanted) == 0


@scalers
def test_a_rolling_update(build: str) -> None:
    """A rollout drains one pod at a time, never goes below the number of replicas, and causes no scaling."""
    world = fleet(build, 5)
    world.run(30 * MINUTE, lambda _: 13_500)
    old, begin, before = set(world.names), world.now, world.replicas
    world.roll_out()
    while world.rolling:
        assert world.now < begin + HOUR
        world.run(15, lambda _: 13_500)
        assert len(world.names) >= before
    world.run(10 * MINUTE, lambda _: 13_500)
    assert not old & set(world.names)
    assert len([drain for drain in world.drains if drain[0] > begin]) == len(old)
    assert not overlapping(world.drains)
    assert {replicas for at, replicas in world.wanted if at > begin} == {before}
    assert world.lost_clients < 1


@by_connections
def test_a_lost_metric(build: str) -> None:
    """While Prometheus is unavailable nothing is scaled down, although CPU alone would allow it; afterwards it is."""
    world = fleet(build, 6)
    world.run(30 * MINUTE, lambda _: 17_000)
    before, begin = world.replicas, world.now
    world.run(2 * HOUR, lambda _: 2000, readable=lambda _: False)
    assert {replicas for at, replicas in world.wanted if at > begin} == {before}
    world.run(2 * HOUR, lambda _: 2000)
    assert world.replicas < before


def test_no_metric_at_all() -> None:
    """Without metrics-server, the base keeps its number of replicas."""
    world = fleet("base", 6)
    world.metrics_server = False
    world.run(30 * MINUTE, lambda _: 17_000)
    before, begin = world.replicas, world.now
    world.run(HOUR, lambda _: 0, readable=lambda _: False)
    assert {replicas for at, replicas in world.wanted if at > begin} == {before}


@by_connections
def test_a_pod_that_cannot_be_scraped(build: str) -> None:
    """If one pod's samples are missing for an hour, no pod is removed."""
    world = fleet(build, 5)
    world.run(30 * MINUTE, lambda _: 13_500)
    before, begin, hidden = world.replicas, world.now, world.names[0]
    world.run(HOUR, lambda _: 13_500, scraped=lambda _, name: name != hidden)
    assert not lowered(world.wanted, begin, world.now)
    assert world.replicas == before


def test_why_keda_averages() -> None:
    """With a sum as query, as in most examples for KEDA, a pod would be removed if another cannot be scraped."""
    four_of_five = 4 * 2700.0
    by_sum = math.ceil(four_of_five / PER_POD)
    average = Autoscaler([Metric("connections", "external-value", PER_POD)], PLAIN, 2, 20)
    pods = [Pod(f"pod-{number}") for number in range(5)]
    assert by_sum == 4
    assert average.reconcile(0, 5, pods, {"connections": four_of_five / 4}) == 5


@by_connections
def test_a_failover_of_redis(build: str) -> None:
    """A short delivery lag adds no pod."""
    world = fleet(build, 4)
    world.run(30 * MINUTE, lambda _: 10_000)
    before, begin = world.replicas, world.now
    world.run(2 * MINUTE, lambda _: 10_000, lag=lambda _: 1.0)
    world.run(HOUR, lambda _: 10_000)
    assert {replicas for at, replicas in world.wanted if at > begin} == {before}


@by_connections
def test_a_lag_that_stays(build: str) -> None:
    """A lag that more pods cannot cure adds pods up to the maximum; afterwards they are removed one by one."""
    world = fleet(build, 4)
    world.run(30 * MINUTE, lambda _: 10_000)
    begin, before = world.now, world.replicas
    world.run(HOUR, lambda _: 10_000, lag=lambda _: 1.0)  # the queries cap the lag at 1 s
    assert before < world.replicas <= 30
    world.run(2 * HOUR, lambda _: 10_000)
    assert world.replicas == before
    assert turns([entry for entry in world.wanted if entry[0] > begin]) == 1
    assert not overlapping(world.drains)


@given(
    levels=st.lists(st.integers(0, 40_000), min_size=2, max_size=6),
    minutes=st.integers(2, 30),
    build=st.sampled_from(SCALERS),
    outage=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_random_loads(levels: list[int], minutes: int, build: str, outage: int) -> None:
    """For any load and any outage of the metrics, drains do not overlap, and none starts without metrics."""
    world = fleet(build, 3)
    away = (outage * minutes * MINUTE, (outage + 1) * minutes * MINUTE)

    def readable(now: float) -> bool:
        return not away[0] <= now < away[1]

    for level in levels:
        world.run(minutes * MINUTE, lambda _, level=level: float(level), readable=readable)  # type: ignore[misc]
    assert not overlapping(world.drains)
    assert world.lost_clients < 1
    if build != "base":
        assert not lowered(world.wanted, *away)


# -- the simulator --------------------------------------------------------------------------------------------------


def want(samples: Any, pods: Sequence[Pod], current: int, kind: Any = "pods", target: float = 100) -> int:
    """Return the number that a scaler without limits asks for."""
    return Autoscaler([Metric("metric", kind, target)], PLAIN, 1, 100).reconcile(0, current, pods, {"metric": samples})


PODS = [Pod(f"pod-{number}") for number in range(4)]


@pytest.mark.parametrize(
    ("values", "replicas"),
    [
        ([200, 200, 200, 200], 8),  # twice the target, twice the pods
        ([50, 50, 50, 50], 2),
        ([109, 109, 109, 109], 4),  # within the tolerance of 0.1
        ([111, 111, 111, 111], 5),
        ([95, 95, 80], 4),  # 90 on average; the missing one counts as 100: within the tolerance
        ([20, 20, 20], 2),  # (20 * 3 + 100) / 4 = 40
        ([300, 300, 300], 9),  # the missing one counts as 0: 225 on average
        ([120, 120, 120], 4),  # with 0 for the missing one it would scale down instead of up: no change
        ([], 4),  # no sample of any pod
    ],
)
def test_average_over_pods(values: list[float], replicas: int) -> None:
    """Ratio, tolerance and pods without samples are handled as the documentation of Kubernetes describes."""
    sample = {pod.name: value for pod, value in zip(PODS, values, strict=False)}
    assert want(sample, PODS, 4) == replicas


def test_pods_that_do_not_count() -> None:
    """A terminating pod is left out; a pending one dampens a scale-up, and so does an unready one for CPU."""
    full = {pod.name: 200.0 for pod in PODS}
    assert want(full, [*PODS[:3], PODS[3]._replace(phase="terminating")], 3) == 6
    assert want(full, [*PODS[:3], PODS[3]._replace(phase="pending")], 4) == 6
    unready = [*PODS[:3], PODS[3]._replace(ready=False)]
    assert want(full, unready, 4) == 8
    assert want(full, unready, 4, kind="cpu") == 6
    assert want(60.0, unready, 4, kind="external-value") == math.ceil(0.6 * 3)


def test_several_metrics() -> None:
    """The largest proposal wins; if a metric is missing, only a scale-up is possible."""
    scaler = Autoscaler([Metric("one", "pods", 100), Metric("two", "pods", 100)], PLAIN, 1, 100)
    low, high = {pod.name: 50.0 for pod in PODS}, {pod.name: 200.0 for pod in PODS}
    assert scaler.reconcile(0, 4, PODS, {"one": low, "two": high}) == 8
    assert scaler.reconcile(1000, 4, PODS, {"one": low, "two": None}) == 4
    assert scaler.reconcile(2000, 4, PODS, {"one": None, "two": None}) == 4
    assert scaler.reconcile(3000, 4, PODS, {"one": high, "two": None}) == 8
    assert scaler.reconcile(4000, 4, PODS, {"one": low, "two": low}) == 2


def test_windows_and_policies() -> None:
    """A scale-down waits for the window after the last higher proposal; policies count changes already made."""
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                    "policies": [{"type": "Pods", "value": 4, "periodSeconds": 60},
                                 {"type": "Percent", "value": 50, "periodSeconds": 60}]},
        "scaleDown": {"stabilizationWindowSeconds": 120, "selectPolicy": "Max",
                      "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
    }  # fmt: skip
    scaler = Autoscaler([Metric("metric", "pods", 100)], behavior, 1, 100)
    replicas, log = 4, []
    for now in range(0, 600, 15):
        value = 1000.0 if now <= 60 else 1.0
        pods = [Pod(f"pod-{number}") for number in range(replicas)]
        replicas = scaler.reconcile(now, replicas, pods, {"metric": dict.fromkeys((pod.name for pod in pods), value)})
        log.append((now, replicas))
    changes = [(now, after) for (_, before), (now, after) in pairwise([(0, 4), *log]) if before != after]
    assert changes[0] == (0, 8), "the larger of 4 pods and 50 %"
    assert changes[1] == (60, 12), "the next step follows after the period of a minute"
    downs = [now for (_, before), (now, after) in pairwise(changes) if after < before]
    assert downs[0] == 60 + 120, "the last high proposal was at 60"
    assert all(later - now == 60 for now, later in pairwise(downs))

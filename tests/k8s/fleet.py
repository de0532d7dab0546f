"""Simulation of a fleet: pods that start, serve and drain, clients that connect and reconnect, and an autoscaler.

Time advances in steps of a second. The times for starting and scraping are typical of a cluster; all others are read
from the manifests.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.k8s.hpa import Autoscaler, Pod

__all__ = ["CORES_PER_CONNECTION", "Fleet", "Times"]

SYNC_SECONDS = 15  # --horizontal-pod-autoscaler-sync-period
SCRAPE_SECONDS = 15
STALE_SECONDS = 30  # time of a sample's way through Prometheus and the adapter
START_SECONDS = 8  # until the interpreter has started and Redis is reached; the image is on the node
CORES_PER_CONNECTION = 10 * 12e-6  # ten events a second, at the measured cost of a delivery


@dataclass(frozen=True)
class Times:
    """The times in the manifests, in seconds."""

    grace: float
    pre_stop: float
    drain: float
    min_ready: float
    max_age: float


@dataclass
class _Member:
    name: str
    born: float
    connections: float = 0.0
    leaving: float | None = None
    cohort: float = 0.0


@dataclass
class Fleet:
    """The state of the simulation at `now`; `run` continues from there.

    `wanted` logs the times and numbers of replicas that the autoscaler asked for, `drains` the start and end of each
    drain. `metrics_server` is True if CPU can still be read while the other metrics cannot.
    """

    autoscaler: Autoscaler
    times: Times
    replicas: int
    metrics_server: bool = True
    now: float = 0.0
    wanted: list[tuple[float, int]] = field(default_factory=list)
    drains: list[tuple[float, float]] = field(default_factory=list)
    lost_clients: float = 0.0
    _members: list[_Member] = field(default_factory=list)
    _scrapes: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    _rollout: list[str] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self._members = [self._new(-1000.0) for _ in range(self.replicas)]

    def run(
        self,
        seconds: float,
        demand: Callable[[float], float],
        *,
        readable: Callable[[float], bool] = lambda _: True,
        scraped: Callable[[float, str], bool] = lambda _, __: True,
        lag: Callable[[float], float] = lambda _: 0.05,
    ) -> None:
        """Advance the time; `demand` returns the number of clients, `readable` True while metrics can be read."""
        end = self.now + seconds
        while self.now < end:
            self.now += 1
            self._clients(demand(self.now))
            self._drain()
            self._roll()
            if self.now % SCRAPE_SECONDS == 0:
                here = {m.name: m.connections for m in self._members if self._serves(m) and scraped(self.now, m.name)}
                self._scrapes.append((self.now, here))
            if self.now % SYNC_SECONDS == 0:
                self._scale(readable(self.now), lag(self.now))

    def roll_out(self) -> None:
        """Start a rollout, which replaces every pod."""
        self._rollout = [member.name for member in self._alive()]

    @property
    def rolling(self) -> bool:
        """True while pods are still to be replaced."""
        return bool(self._rollout)

    @property
    def names(self) -> list[str]:
        """The pods that are not terminating."""
        return [member.name for member in self._alive()]

    @property
    def fullest(self) -> float:
        """The largest number of connections of a pod."""
        return max(member.connections for member in self._members)

    # -- one step ---------------------------------------------------------------------------------------------------

    def _clients(self, demand: float) -> None:
        serving = [member for member in self._alive() if self._serves(member)]
        for member in self._members:
            member.connections *= 1 - 1 / self.times.max_age
        have = sum(member.connections for member in self._members)
        if have > demand:
            for member in self._members:
                member.connections *= demand / have
        elif serving:
            for member in serving:
                member.connections += (demand - have) / len(serving)

    def _drain(self) -> None:
        for member in [member for member in self._members if member.leaving is not None]:
            assert member.leaving is not None
            since = self.now - member.leaving - self.times.pre_stop
            left = max(0.0, 1 - since / self.times.drain) if since > 0 else 1.0
            member.connections = min(member.connections, member.cohort * left)
            if self.now - member.leaving >= self.times.grace:  # the longest time that a drain may take
                self.lost_clients += member.connections
                self._members.remove(member)

    def _roll(self) -> None:
        """Perform a step of a rolling update with maxSurge 1 and maxUnavailable 0."""
        if not self._rollout:
            return
        alive = self._alive()
        fresh = [member for member in alive if member.name not in self._rollout]
        available = [m for m in alive if m not in fresh or self.now - m.born >= START_SECONDS + self.times.min_ready]
        if len(available) > self.replicas:
            self._stop(self._rollout.pop(0))
        elif len(alive) <= self.replicas:
            self._members.append(self._new(self.now))

    def _scale(self, readable: bool, lag: float) -> None:
        scrape = max((s for s in self._scrapes if s[0] <= self.now - STALE_SECONDS), default=(0.0, {}))[1]
        alive = {member.name for member in self._alive()}
        cores = {name: value * CORES_PER_CONNECTION for name, value in scrape.items()}
        samples: dict[str, Any] = {"cpu": cores if readable or self.metrics_server else None}
        samples["event_broadcaster_connections"] = scrape if readable else None
        samples["event_broadcaster_delivery_lag_p99_seconds"] = dict.fromkeys(scrape, lag) if readable else None
        # The KEDA query leaves out draining pods.
        staying = [value for name, value in scrape.items() if name in alive]
        samples["connections"] = sum(staying) / len(staying) if readable and staying else None
        samples["delivery-lag"] = lag if readable else None
        wanted = self.autoscaler.reconcile(self.now, self.replicas, [self._seen(m) for m in self._members], samples)
        self.wanted.append((self.now, wanted))
        for _ in range(wanted - self.replicas):
            self._members.append(self._new(self.now))
        for _ in range(self.replicas - wanted):
            # Kubernetes removes the youngest pod first.
            self._stop(max(self._alive(), key=lambda member: member.born).name)
        self.replicas = wanted

    # -- pods -------------------------------------------------------------------------------------------------------

    def _new(self, born: float) -> _Member:
        self._count += 1
        return _Member(f"pod-{self._count}", born)

    def _stop(self, name: str) -> None:
        (member,) = (member for member in self._members if member.name == name)
        member.leaving, member.cohort = self.now, member.connections
        self.drains.append((self.now, self.now + self.times.grace))
        if name in self._rollout:
            self._rollout.remove(name)

    def _alive(self) -> list[_Member]:
        return [member for member in self._members if member.leaving is None]

    def _serves(self, member: _Member) -> bool:
        return self.now - member.born >= START_SECONDS

    def _seen(self, member: _Member) -> Pod:
        if member.leaving is not None:
            return Pod(member.name, "terminating")
        return Pod(member.name, "running", ready=self._serves(member))

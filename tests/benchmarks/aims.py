"""Performance targets, mostly as ratios within one run, and whether they are met."""

import operator
from collections.abc import Callable
from typing import NamedTuple

from tests.benchmarks.results import Results
from tests.benchmarks.rows import connections, hostile, hostile_messages, listening, paced, publish, tracing
from tests.benchmarks.rows.compression import CLIENTS, DEFLATED, PLAIN
from tests.benchmarks.subjects import CHANNELS, FASTAPI, OURS, SEND, STREAMS

__all__ = ["AIMS", "Aim", "aims_table"]

_SATURATED = "1,000 clients, 350 B"
_MOST = f"{CLIENTS[-1]:,} clients"


class Aim(NamedTuple):
    """A target: `value` returns the measured value, or None; `sign` (">=" or "<=") compares it with `bound`."""

    text: str
    sign: str
    bound: float
    value: Callable[[Results], float | None]

    def met(self, value: float) -> bool:
        """Return True if the value meets the target."""
        compare = operator.ge if self.sign == ">=" else operator.le
        return bool(compare(value, self.bound))


def _ratio(row: str, metric: str, *sides: tuple[str, str]) -> Callable[[Results], float | None]:
    """Return a function for the ratio of one metric of the first (case, subject) to that of the second."""

    def value(results: Results) -> float | None:
        first, second = (results.median(row, *side, metric) for side in sides)
        return first / second if first is not None and second else None

    return value


def _extreme(choose: Callable[..., float], row: str, metric: str, part: str = "") -> Callable[[Results], float | None]:
    """Return a function for the largest or smallest median among the cases with `part` in their names."""

    def value(results: Results) -> float | None:
        return choose((v for case, _, v in results.every(row, metric) if part in case), default=None)

    return value


def _at_rest(name: str) -> Callable[[Results], float | None]:
    """Return a function for the ratio of the memory of an idle client of this kind to that of a WebSocket."""

    def value(results: Results) -> float | None:
        memory = {subject: value for _, subject, value in results.every("waiting", "memory")}
        return memory[name] / memory[OURS.name] if name in memory and OURS.name in memory else None

    return value


def _storm(results: Results) -> float | None:
    """Return the ratio of the p99 of a resume to the p99 of a plain connect."""
    cases = {case.partition(" ")[2]: v for case, _, v in results.every("storm", "p99")}
    near, new = cases.get(connections.NEAR), cases.get(connections.NEW)
    return near / new if near and new else None


def _traced(row: str, case: str, bound: float, name: str, base: str) -> Aim:
    """Return the target for the CPU cost of one tracing variant relative to another."""
    text = f"{row}, {name}: CPU, relative to {base}"
    return Aim(text, "<=", bound, _ratio(row, "cpu", (case, name), (case, base)))


AIMS = (
    Aim(
        "saturated, 1,000 clients, 350 B: deliveries per second, relative to FastAPI",
        ">=",
        30,
        _ratio("saturated", "rate", (_SATURATED, OURS.name), (_SATURATED, FASTAPI.name)),
    ),
    Aim(
        "the same, relative to Litestar's channels",
        ">=",
        20,
        _ratio("saturated", "rate", (_SATURATED, OURS.name), (_SATURATED, CHANNELS.name)),
    ),
    Aim(
        "one at a time, 1,000 clients: CPU, relative to one send(2) each",
        "<=",
        1.4,
        _ratio("single", "cpu", (_SATURATED, OURS.name), (_SATURATED, SEND.name)),
    ),
    Aim(
        "paced 100/s: p99, relative to FastAPI at 50/s",
        "<=",
        0.5,
        _ratio("paced", "p99", (paced.ALIKE, OURS.name), (paced.HALF, FASTAPI.name)),
    ),
    Aim(
        "10 mixes of patterns: CPU, relative to none",
        "<=",
        1.1,
        _ratio("paced", "cpu", (paced.MIXES, OURS.name), (paced.ALIKE, OURS.name)),
    ),
    Aim(
        "1,000 sets of patterns: CPU, relative to none",
        "<=",
        2,
        _ratio("paced", "cpu", (paced.SETS, OURS.name), (paced.ALIKE, OURS.name)),
    ),
    Aim(
        "publish: requests per second, relative to an empty Litestar route, 64 connections",
        ">=",
        0.7,
        _ratio("publish", "rate", ("64 connections", OURS.name), ("64 connections", publish.EMPTY)),
    ),
    Aim("batches: events per CPU second, worst case", ">=", 60_000, _extreme(min, "batch", "per_cpu")),
    Aim(
        "idle connection: bytes, worst case",
        "<=",
        20_000,
        lambda results: max(
            (v for _, subject, v in results.every("idle", "memory") if subject == OURS.name), default=None
        ),
    ),
    *(
        Aim(f"{name}, idle: memory, relative to an idle WebSocket", "<=", 1.5, _at_rest(name))
        for name in (STREAMS.name, listening.POLLS)
    ),
    Aim("idle streams and waiting polls: share of a CPU", "<=", 0.01, _extreme(max, "waiting", "busy")),
    Aim("storm: p99 of a resume, relative to a plain connect", "<=", 3, _storm),
    Aim("storm: reads of Redis, 500 events behind", "<=", 20, _extreme(max, "storm", "reads", connections.FAR)),
    Aim(
        "deflate, 1,000 clients: CPU, relative to plain",
        "<=",
        1.1,
        _ratio("compression", "cpu_event", *((_MOST, f"{OURS.name}, {kind}") for kind in (DEFLATED, PLAIN))),
    ),
    _traced("traced-publish", tracing.CASE, 1.03, tracing.OFF, tracing.NONE),
    _traced("traced-publish", tracing.CASE, 1.03, tracing.SAMPLED, tracing.OFF),
    _traced("traced-publish", tracing.CASE, 1.15, tracing.ALWAYS, tracing.OFF),
    _traced("traced-fanout", _SATURATED, 1.03, tracing.OFF, tracing.NONE),
    _traced("traced-fanout", _SATURATED, 1.03, tracing.SAMPLED, tracing.OFF),
    Aim("event loop: longest time blocked, ms", "<=", 10, _extreme(max, "held", "held")),
    Aim(
        f"the same, one hostile publish of {hostile.DEFAULT}, ms",
        "<=",
        10,
        _extreme(max, "hostile", "held", hostile.DEFAULT),
    ),
    Aim(
        "the same, messages of one hostile WebSocket client, ms",
        "<=",
        10,
        _extreme(max, "hostile-messages", "held", hostile_messages.LIMITED),
    ),
)


def aims_table(results: Results) -> str:
    """Return the targets that were measured as a Markdown table."""
    lines = ["| aim | wanted | measured | |", "| --- | ---: | ---: | --- |"]
    for aim in AIMS:
        value = aim.value(results)
        if value is not None:
            shown, bound = (f"{number:,.2f}" if number < 100 else f"{number:,.0f}" for number in (value, aim.bound))
            met = "met" if aim.met(value) else "**missed**"
            lines.append(f"| {aim.text} | {aim.sign} {bound} | {shown} | {met} |")
    return "\n".join(lines)

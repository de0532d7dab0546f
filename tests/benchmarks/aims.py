"""What the figures should be, as ratios within one run, and whether they are."""

import operator
from collections.abc import Callable
from typing import NamedTuple

from tests.benchmarks.results import Results
from tests.benchmarks.rows import connections, paced, publish, tracing
from tests.benchmarks.rows.compression import CLIENTS, DEFLATED, PLAIN
from tests.benchmarks.subjects import CHANNELS, FASTAPI, OURS, SEND

__all__ = ["AIMS", "Aim", "aims_table"]

_SATURATED = "1,000 clients, 350 B"
_MOST = f"{CLIENTS[-1]:,} clients"


class Aim(NamedTuple):
    """`value` is what was measured, None if it was not; it is to be at least or at most `bound`."""

    text: str
    sign: str
    bound: float
    value: Callable[[Results], float | None]

    def met(self, value: float) -> bool:
        """Whether a value is what it should be."""
        compare = operator.ge if self.sign == ">=" else operator.le
        return bool(compare(value, self.bound))


def _ratio(row: str, metric: str, *sides: tuple[str, str]) -> Callable[[Results], float | None]:
    """One metric of the first (case, subject) divided by that of the second."""

    def value(results: Results) -> float | None:
        first, second = (results.median(row, *side, metric) for side in sides)
        return first / second if first is not None and second else None

    return value


def _extreme(choose: Callable[..., float], row: str, metric: str, part: str = "") -> Callable[[Results], float | None]:
    """The worst median among the cases with `part` in their names."""

    def value(results: Results) -> float | None:
        return choose((v for case, _, v in results.every(row, metric) if part in case), default=None)

    return value


def _storm(results: Results) -> float | None:
    """The slowest of 100 resumes, in the slowest of 100 plain connects."""
    cases = {case.partition(" ")[2]: v for case, _, v in results.every("storm", "p99")}
    near, new = cases.get(connections.NEAR), cases.get(connections.NEW)
    return near / new if near and new else None


def _traced(row: str, case: str, bound: float, name: str, base: str) -> Aim:
    """What tracing may cost of CPU, beside another way to run the same."""
    text = f"{row}, {name}: CPU, beside {base}"
    return Aim(text, "<=", bound, _ratio(row, "cpu", (case, name), (case, base)))


AIMS = (
    Aim(
        "saturated, 1,000 clients, 350 B: deliveries a second, beside FastAPI",
        ">=",
        30,
        _ratio("saturated", "rate", (_SATURATED, OURS.name), (_SATURATED, FASTAPI.name)),
    ),
    Aim(
        "the same, beside Litestar's channels",
        ">=",
        20,
        _ratio("saturated", "rate", (_SATURATED, OURS.name), (_SATURATED, CHANNELS.name)),
    ),
    Aim(
        "one at a time, 1,000 clients: CPU, beside one send(2) each",
        "<=",
        1.4,
        _ratio("single", "cpu", (_SATURATED, OURS.name), (_SATURATED, SEND.name)),
    ),
    Aim(
        "paced 100/s: p99, beside FastAPI at 50/s",
        "<=",
        0.5,
        _ratio("paced", "p99", (paced.ALIKE, OURS.name), (paced.HALF, FASTAPI.name)),
    ),
    Aim(
        "10 mixes of patterns: CPU, beside none",
        "<=",
        1.1,
        _ratio("paced", "cpu", (paced.MIXES, OURS.name), (paced.ALIKE, OURS.name)),
    ),
    Aim(
        "1,000 sets of patterns: CPU, beside none",
        "<=",
        2,
        _ratio("paced", "cpu", (paced.SETS, OURS.name), (paced.ALIKE, OURS.name)),
    ),
    Aim(
        "publish: requests a second, beside an empty Litestar route, 64 connections",
        ">=",
        0.7,
        _ratio("publish", "rate", ("64 connections", OURS.name), ("64 connections", publish.EMPTY)),
    ),
    Aim("batches: events for each CPU second, the worst case", ">=", 60_000, _extreme(min, "batch", "per_cpu")),
    Aim(
        "idle connection: bytes, the worst case",
        "<=",
        20_000,
        lambda results: max(
            (v for _, subject, v in results.every("idle", "memory") if subject == OURS.name), default=None
        ),
    ),
    Aim("storm: p99 of a resume, beside a plain connect", "<=", 3, _storm),
    Aim("storm: reads of Redis for 500 events behind", "<=", 20, _extreme(max, "storm", "reads", connections.FAR)),
    Aim(
        "deflate, 1,000 clients: CPU, beside plain",
        "<=",
        1.1,
        _ratio("compression", "cpu_event", *((_MOST, f"{OURS.name}, {kind}") for kind in (DEFLATED, PLAIN))),
    ),
    _traced("traced-publish", tracing.CASE, 1.03, tracing.OFF, tracing.NONE),
    _traced("traced-publish", tracing.CASE, 1.03, tracing.SAMPLED, tracing.OFF),
    _traced("traced-publish", tracing.CASE, 1.15, tracing.ALWAYS, tracing.OFF),
    _traced("traced-fanout", _SATURATED, 1.03, tracing.OFF, tracing.NONE),
    _traced("traced-fanout", _SATURATED, 1.03, tracing.SAMPLED, tracing.OFF),
    Aim("the loop: longest time that it did not turn, ms", "<=", 10, _extreme(max, "held", "held")),
)


def aims_table(results: Results) -> str:
    """All aims that were measured, as a Markdown table."""
    lines = ["| aim | wanted | measured | |", "| --- | ---: | ---: | --- |"]
    for aim in AIMS:
        value = aim.value(results)
        if value is not None:
            shown, bound = (f"{number:,.2f}" if number < 100 else f"{number:,.0f}" for number in (value, aim.bound))
            met = "met" if aim.met(value) else "**missed**"
            lines.append(f"| {aim.text} | {aim.sign} {bound} | {shown} | {met} |")
    return "\n".join(lines)

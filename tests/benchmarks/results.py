"""The results: all values of all rounds, their medians, and tables of them."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["Column", "Results", "Table"]


class Column(NamedTuple):
    """A column of a table; a value times `scale` is in the unit of `header`."""

    metric: str
    header: str
    digits: int = 0
    scale: float = 1.0


class Table(NamedTuple):
    """The format of a row; with `base`, a last column has the ratio of the first figure to that subject's."""

    title: str
    columns: Sequence[Column]
    base: str = ""


class Results:
    """Values by row, case (the conditions) and subject (the server)."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[str, str], dict[str, list[float]]]] = {}

    def add(self, row: str, case: str, subject: str, values: dict[str, float]) -> None:
        """Add the values of one round."""
        kept = self._values.setdefault(row, {}).setdefault((case, subject), {})
        for metric, value in values.items():
            kept.setdefault(metric, []).append(value)

    def median(self, row: str, case: str, subject: str, metric: str) -> float | None:
        """Return the median over the rounds, or None if it was not measured."""
        values = self._values.get(row, {}).get((case, subject), {}).get(metric)
        return statistics.median(values) if values else None

    def every(self, row: str, metric: str) -> Iterable[tuple[str, str, float]]:
        """Yield case, subject and median of one metric of a row."""
        for (case, subject), metrics in self._values.get(row, {}).items():
            if metric in metrics:
                yield case, subject, statistics.median(metrics[metric])

    def table(self, row: str, table: Table) -> str:
        """Return a row as a Markdown table."""
        heads = ["", "", *(column.header for column in table.columns)]
        if table.base:
            heads.append(f"x {table.base}")
        lines = [heads, ["---", "---", *("---:" for _ in heads[2:])]]
        previous = ""
        for (case, subject), metrics in self._values.get(row, {}).items():
            cells = [_number(metrics.get(c.metric), c) for c in table.columns]
            if table.base:
                cells.append(self._ratio(row, case, subject, table))
            lines.append(["" if case == previous else case, subject, *cells])
            previous = case
        return f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def as_json(self) -> dict[str, Any]:
        """Return all values of all rounds."""
        return {
            row: [{"case": case, "subject": subject, **metrics} for (case, subject), metrics in cases.items()]
            for row, cases in self._values.items()
        }

    def _ratio(self, row: str, case: str, subject: str, table: Table) -> str:
        metric = table.columns[0].metric
        own, base = self.median(row, case, subject, metric), self.median(row, case, table.base, metric)
        if not own or not base:
            return ""
        ratio = own / base
        return f"{ratio:.{2 if ratio < 2 else 1}f}"


def _number(values: list[float] | None, column: Column) -> str:
    return f"{statistics.median(values) * column.scale:,.{column.digits}f}" if values else ""

"""The measurements, one per file, in the order of the tables."""

from tests.benchmarks.bench import Row
from tests.benchmarks.rows import (
    compression,
    connections,
    growth,
    held,
    hostile,
    paced,
    publish,
    saturated,
    single,
    tracing,
)

__all__ = ["ROWS"]

ROWS: list[Row] = [
    saturated.ROW,
    single.ROW,
    paced.ROW,
    *publish.ROWS,
    *connections.ROWS,
    compression.ROW,
    *growth.ROWS,
    held.ROW,
    hostile.ROW,
    *tracing.ROWS,
]

"""The measurements, one per file, in the order of the tables."""

from tests.benchmarks.bench import Row
from tests.benchmarks.rows import (
    compression,
    connections,
    growth,
    held,
    hostile,
    hostile_memory,
    hostile_messages,
    listening,
    narrow_link,
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
    *listening.ROWS,
    compression.ROW,
    *growth.ROWS,
    held.ROW,
    hostile.ROW,
    hostile_messages.ROW,
    hostile_memory.ROW,
    narrow_link.ROW,
    *tracing.ROWS,
]

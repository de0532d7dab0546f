"""A chart of the throughput by clients and by replicas: two panels of lines, as SVG without a library."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.benchmarks.results import Results
from tests.benchmarks.rows.growth import CLIENTS, REPLICAS

__all__ = ["picture"]

_WIDTH, _HEIGHT = 440, 300
_LEFT, _TOP, _RIGHT, _BOTTOM = 62, 34, 14, 46
_COLOURS = ("#2563eb", "#9ca3af", "#16a34a", "#d97706")

Line = tuple[str, list[tuple[float, float]]]


def picture(results: Results) -> str | None:
    """Draw the deliveries per second by clients and by replicas; None if neither was measured."""
    panels = [
        ("Deliveries per second, by clients of one replica", CLIENTS, True, _lines(results, "clients", CLIENTS)),
        ("Deliveries per second, by replicas on one Redis", REPLICAS, False, _lines(results, "replicas", REPLICAS)),
    ]
    panels = [panel for panel in panels if panel[3]]
    if not panels:
        return None
    width = _WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}"'
        ' font-family="sans-serif" font-size="11" fill="#374151">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="#ffffff"/>',
    ]
    for index, (title, ticks, logarithmic, lines) in enumerate(panels):
        parts.append(f'<g transform="translate({index * _WIDTH} 0)">')
        parts += _panel(title, ticks, logarithmic, lines)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _lines(results: Results, row: str, ticks: Sequence[int]) -> list[Line]:
    """Return a line for each subject."""
    found: dict[str, list[tuple[float, float]]] = {}
    for case, subject, rate in results.every(row, "rate"):
        found.setdefault(subject, []).append((int(case.split(" ")[0].replace(",", "")), rate))
    return list(found.items())


def _panel(title: str, ticks: Sequence[int], logarithmic: bool, lines: list[Line]) -> list[str]:
    rates = [rate for _, points in lines for _, rate in points]
    if logarithmic:
        low, high = 10.0 ** math.floor(math.log10(min(rates))), 10.0 ** math.ceil(math.log10(max(rates)))
        marks = [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    else:
        step = 10.0 ** math.floor(math.log10(max(rates)))
        low, high = 0.0, step * math.ceil(max(rates) / step)
        marks = [step * number for number in range(round(high / step) + 1)]

    def x(tick: float) -> float:
        first, last, here = (math.log10(t) if logarithmic else t for t in (ticks[0], ticks[-1], tick))
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (here - first) / (last - first)

    def y(rate: float) -> float:
        bottom, top, here = (math.log10(r) if logarithmic else r for r in (low, high, rate))
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (here - bottom) / (top - bottom)

    parts = [f'<text x="{_LEFT}" y="18" font-size="13" fill="#111827">{escape(title)}</text>']
    for mark in marks:
        parts.append(f'<path d="M{_LEFT} {y(mark):.1f}H{_WIDTH - _RIGHT}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(mark) + 4:.1f}" text-anchor="end">{_short(mark)}</text>')
    for tick in ticks:
        text = f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:,}</text>'
        parts.append(text)
    for number, (name, points) in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path = "L".join(f"{x(tick):.1f} {y(rate):.1f}" for tick, rate in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(tick):.1f}" cy="{y(rate):.1f}" r="3" fill="{colour}"/>' for tick, rate in points]
        place = f'x="{_LEFT + number * 125}" y="{_HEIGHT - 10}"'
        parts.append(f'<text {place} fill="{colour}">{escape(name)}</text>')
    return parts


def _short(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:g} {unit}"
    return f"{number:g}"

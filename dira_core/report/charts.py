"""Charts as inline SVG: curves over steps, and intervals of arms. Text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#1f6fb2", "#d1603d", "#3a8f5c", "#8757a8", "#b0892b", "#5b6770")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 400, 190, 58, 24, 10, 10
MOST = 400
"""Points drawn of a curve, at most."""

Points = Sequence[tuple[float, float]]


class Interval(NamedTuple):
    """A value with its interval, and what to call it."""

    name: str
    value: float
    interval: tuple[float, float] | None


def curves(series: Mapping[str, Points], *, log: bool = False) -> str:
    """Draw curves over one x axis.

    Args:
        series: Points (x, y) by name, in order of x; what is not finite is left out.
        log: Whether the y axis is logarithmic; values that are not positive are left out.
    """
    drawn = {
        name: [(x, y) for x, y in thinned(points) if math.isfinite(y) and (y > 0 or not log)]
        for name, points in series.items()
    }
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return ""
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [math.log10(y) if log else y for points in drawn.values() for _, y in points]
    to_x = scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    low, high = padded(min(ys), max(ys))
    to_y = scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [*grid_y(low, high, to_y, log), *ticks_x(min(xs), max(xs), to_x)]
    for colour, (name, points) in zip(cycle(len(drawn)), drawn.items(), strict=True):
        at = " ".join(f"{to_x(x):.1f},{to_y(math.log10(y) if log else y):.1f}" for x, y in points)
        if len(points) == 1:
            x, y = at.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>')
        parts.append(
            f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="1.6">'
            f"<title>{escape(name)}</title></polyline>"
        )
    return figure(parts, HEIGHT) + (legend([*drawn]) if len(drawn) > 1 else "")


def intervals(found: Sequence[Interval]) -> str:
    """Draw values with their intervals, one below the other."""
    if not found:
        return ""
    ends = [end for each in found for end in (each.value, *(each.interval or ()))]
    low, high = padded(min(ends), max(ends))
    left, row = 150, 22
    height = row * len(found) + BOTTOM + TOP
    to_x = scale(low, high, left, WIDTH - RIGHT)
    parts = [*ticks_x(low, high, to_x, height)]
    for number, each in enumerate(found):
        y = TOP + row * (number + 0.5)
        a, b = each.interval or (each.value, each.value)
        parts += [
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(each.name)}</text>',
            f'<line x1="{to_x(a):.1f}" x2="{to_x(b):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{COLOURS[0]}" stroke-width="2"/>',
            f'<circle cx="{to_x(each.value):.1f}" cy="{y}" r="4" fill="{COLOURS[0]}">'
            f"<title>{each.value:.2f}</title></circle>",
        ]
    return figure(parts, height)


def thinned(points: Points) -> Points:
    """Return at most `MOST` of the points, the last among them."""
    step = -(-len(points) // MOST)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


class Scale(NamedTuple):
    """A linear map from values to px."""

    low: float
    high: float
    a: float
    b: float

    def __call__(self, value: float) -> float:
        """Return where a value lies."""
        span = self.high - self.low
        part = (value - self.low) / span if span else 0.5
        return self.a + part * (self.b - self.a)


def scale(low: float, high: float, a: float, b: float) -> Scale:
    """Map [low, high] onto [a, b]."""
    return Scale(low, high, a, b)


def padded(low: float, high: float) -> tuple[float, float]:
    """Return a range with some air, never empty."""
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - air, high + air


def steps(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers within a range: 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def grid_y(low: float, high: float, to_y: Scale, log: bool) -> list[str]:
    """Draw horizontal lines with their values."""
    parts = []
    for value in steps(low, high, 4):
        y, said = to_y(value), f"{10**value if log else value:.4g}"
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="g"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{said}</text>')
    return parts


def ticks_x(low: float, high: float, to_x: Scale, height: int = HEIGHT) -> list[str]:
    """Write values below the x axis."""
    return [
        f'<text x="{to_x(value):.1f}" y="{height - 6}" text-anchor="middle">{value:.6g}</text>'
        for value in steps(low, high, 5)
    ]


def cycle(n: int) -> list[str]:
    """Return n colours, from the first again where they do not suffice."""
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def legend(names: Sequence[str]) -> str:
    """Name the colours of curves."""
    spans = (
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for colour, name in zip(cycle(len(names)), names, strict=True)
    )
    return f'<div class="legend">{"".join(spans)}</div>'


def figure(parts: Sequence[str], height: int) -> str:
    """Put the parts of a chart together."""
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'

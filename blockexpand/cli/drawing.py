"""Layers, heat maps and curves as SVG text. It knows numbers and names, and no checkpoint.

Everything that is not a number is escaped. Colours are classes and variables of the page around it,
so that one picture is right on light and on dark ground.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

STEPS = 7  # classes q0 (has not moved) to q6 of a heat map

_PER_ROW = 16


def draw_layers(layers: Sequence[tuple[bool, str]]) -> str:
    """Draw a bar for each layer (is it new, what is said of it), 16 to a row; new ones are tall."""
    rows = -(-len(layers) // _PER_ROW)
    parts = []
    for index, (is_new, said) in enumerate(layers):
        x, y = index % _PER_ROW * 18, index // _PER_ROW * 62
        height = 36 if is_new else 14
        kind = "new" if is_new else "old"
        parts.append(
            f'<g><title>{escape(said)}</title><rect class="{kind}" x="{x + 2}" '
            f'y="{y + 40 - height}" width="14" height="{height}" rx="2"/>'
        )
        if is_new or index % _PER_ROW == 0 or index == len(layers) - 1:
            parts.append(f'<text x="{x + 9}" y="{y + 54}" class="tick">{index}</text>')
        parts.append("</g>")
    width = min(len(layers), _PER_ROW) * 18 + 2
    return _svg(width, rows * 62, "The layers in their order", "".join(parts))


def draw_heat(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[float | None, str]]]]
) -> str:
    """Draw named rows of (value, what is said of it); the colour goes by its root."""
    highest = max((value for _, cells in rows for value, _ in cells if value), default=1.0)
    parts = [
        f'<text x="{index * 44 + 22}" y="12" class="tick">{escape(name)}</text>'
        for index, name in enumerate(columns)
    ]
    for number, (name, cells) in enumerate(rows):
        y = 18 + number * 42
        parts.append(f'<text x="1" y="{y + 12}" class="name">{escape(name)}</text>')
        for index, (value, said) in enumerate(cells):
            step = "none" if value is None else f"q{_step(value, highest)}"
            shown = "" if value is None else _short(value)
            parts.append(
                f'<g><title>{escape(said)}</title><rect class="{step}" x="{index * 44 + 1}" '
                f'y="{y + 16}" width="42" height="22" rx="3"/><text x="{index * 44 + 22}" '
                f'y="{y + 31}" class="{step} value">{shown}</text></g>'
            )
    widest = max((len(name) for name, _ in rows), default=0)
    width = max(len(columns) * 44, widest * 7)
    return _svg(width, 18 + len(rows) * 42, "Tensors by new blocks", "".join(parts))


def draw_growth(points: Sequence[str], curves: Mapping[str, Sequence[float | None]]) -> str:
    """Draw a curve for each name over the points, from 0; a value of None leaves a gap."""
    left, right, top, bottom = 44, 340, 12, 190
    highest = max((v for values in curves.values() for v in values if v), default=1.0)
    ceiling = _round_up(highest)
    step = (right - left) / max(len(points) - 1, 1)

    def place(index: int, value: float) -> tuple[float, float]:
        return left + index * step, bottom - (bottom - top) * value / ceiling

    parts = []
    for part in range(5):
        value = ceiling * part / 4
        _, y = place(0, value)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="side" x="{left - 6}" y="{y + 4:.1f}">{value:.3g}</text>')
    every = -(-len(points) // 12)
    for index, point in enumerate(points):
        if index % every == 0:
            x, _ = place(index, 0)
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}">{escape(point)}</text>')
    for number, (name, values) in enumerate(curves.items()):
        placed = [place(i, value) for i, value in enumerate(values) if value is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in placed)
        parts.append(
            f'<g style="--hue:{hue(number, len(curves)):.0f}" class="curve">'
            f'<title>{escape(name)}</title><polyline points="{path}"/>{dots}</g>'
        )
    return _svg(360, 216, "Growth over the checkpoints", "".join(parts), wide=True)


def hue(number: int, count: int) -> float:
    """Return the hue of a curve: the first is blue, the last orange."""
    return 220 - 200 * number / max(count - 1, 1)


def _svg(width: float, height: float, title: str, content: str, *, wide: bool = False) -> str:
    size = 'class="wide"' if wide else f'width="{width:.0f}" height="{height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" {size} '
        f'viewBox="0 0 {width:.0f} {height:.0f}">{content}</svg>'
    )


def _step(value: float, highest: float) -> int:
    """Return the class of a value; 0 is for what has not moved."""
    if value <= 0:
        return 0
    return 1 + min(int(math.sqrt(value / highest) * (STEPS - 1)), STEPS - 2)


def _short(value: float) -> str:
    """Return a value in at most six characters."""
    if value == 0:
        return "0"
    return f"{value:.0e}".replace("e-0", "e-") if value < 0.001 else f"{value:.2g}"


def _round_up(value: float) -> float:
    """Return the next number of one digit and a half, for an axis."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(n * power for n in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if n * power >= value * 0.9999)

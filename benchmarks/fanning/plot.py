"""Plots of what a delivery costs, as SVG for light and dark colour schemes: curves over streams, and bars of ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 60, 190, 60, 52
LABEL = 17  # minimum distance of two labels
STYLE = """
svg { --paper: #ffffff; --ink: #1f2328; --faint: #d1d9e0; font: 13px system-ui, sans-serif }
.c0 { --line: #57606a } .c1 { --line: #0969da } .c2 { --line: #0550ae } .c3 { --line: #1a7f37 }
.c4 { --line: #9a6700 } .c5 { --line: #cf222e } .c6 { --line: #8250df }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --ink: #e6edf3; --faint: #30363d }
  .c0 { --line: #9198a1 } .c1 { --line: #58a6ff } .c2 { --line: #a5d6ff } .c3 { --line: #3fb950 }
  .c4 { --line: #d29922 } .c5 { --line: #ff7b72 } .c6 { --line: #d2a8ff }
}
rect { fill: var(--paper) } text { fill: var(--ink) } .grid { stroke: var(--faint) }
polyline { fill: none; stroke: var(--line); stroke-width: 2 } .ours polyline { stroke-width: 3.5 }
circle { fill: var(--line) } .name { fill: var(--line) } .ours .name { font-weight: 700 }
"""


class Curve(NamedTuple):
    """The microseconds per delivery of a peer, by number of streams."""

    name: str
    points: Sequence[tuple[int, float]]


def plot(curves: Sequence[Curve]) -> str:
    """Return an SVG of the curves, with a logarithmic axis for the number of streams."""
    counts = sorted({count for curve in curves for count, _ in curve.points})
    top = max(value for curve in curves for _, value in curve.points)
    step = 10 if top > 25 else 5
    top = step * (int(top / step) + 1)
    low, high = log10(counts[0]), log10(counts[-1])

    def x(count: float) -> float:
        return LEFT + (log10(count) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>CPU of the server per delivery</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text x="{LEFT}" y="28" font-size="16">CPU of the server per delivery, µs; one event at a time</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">open streams</text>',
    ]
    for value in range(0, top + 1, step):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    parts += [
        f'<text x="{x(count):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{count:,}</text>' for count in counts
    ]
    labels = spaced([y(curve.points[-1][1]) for curve in curves])
    for number, (curve, label) in enumerate(zip(curves, labels, strict=True)):
        points = [f"{x(count):.1f},{y(value):.1f}" for count, value in curve.points]
        kind = f"c{number % 7}" + (" ours" if curve.name.startswith("ours") else "")
        dots = "".join(f'<circle cx="{point.split(",")[0]}" cy="{point.split(",")[1]}" r="3.5"/>' for point in points)
        name = f"{escape(curve.name)} {curve.points[-1][1]:.1f}"
        parts.append(f'<g class="{kind}"><polyline points="{" ".join(points)}"/>{dots}')
        parts.append(f'<text class="name" x="{WIDTH - RIGHT + 14}" y="{label + 4:.1f}">{name}</text></g>')
    return "\n".join([*parts, "</svg>", ""])


COLOURS = 0, 1, 5, 3  # of the bars
BAR, GAP = 16, 14  # height of a bar, and the distance of two groups


def bars(panels: Mapping[str, Sequence[tuple[str, str, float]]]) -> str:
    """Return an SVG of ratios as bars, with a panel for each quantity. The first server is what the others relate to.

    Args:
        panels: For each quantity the group, the name of the server, and the ratio of each bar, in order.
    """
    first = next(iter(panels.values()))
    groups, names = (
        list(dict.fromkeys(group for group, _, _ in first)),
        list(dict.fromkeys(name for _, name, _ in first)),
    )
    height = TOP + len(groups) * (len(names) * BAR + GAP) + 34
    width = (WIDTH - 110) / len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(' and '.join(panels))} of a delivery, in relation to {escape(names[0])}</title>",
        f"<style>{STYLE} .bar {{ fill: var(--line) }}</style>",
        f'<rect width="{WIDTH}" height="{height}"/>',
    ]
    for column, (quantity, found) in enumerate(panels.items()):
        left = 110 + column * width
        scale = (width - 60) / max(ratio for _, _, ratio in found)
        parts.append(f'<text x="{left}" y="28" font-size="16">{escape(quantity)}, x {escape(names[0])}</text>')
        for group, name, ratio in found:
            y = TOP - 14 + groups.index(group) * (len(names) * BAR + GAP) + names.index(name) * BAR
            if not column and name == names[0]:
                parts.append(f'<text x="10" y="{y + BAR - 3}">{escape(group)}</text>')
            parts.append(f'<g class="c{COLOURS[names.index(name)]}"><rect class="bar" x="{left}" y="{y}" ')
            parts.append(f'width="{max(1.0, ratio * scale):.1f}" height="{BAR - 3}"/></g>')
            parts.append(
                f'<text x="{left + ratio * scale + 6:.1f}" y="{y + BAR - 5}" font-size="11">{ratio:.2f}</text>'
            )
    for number, name in enumerate(names):
        x = 110 + number * 110
        parts.append(
            f'<g class="c{COLOURS[number]}"><rect class="bar" x="{x}" y="{height - 24}" width="12" height="12"/></g>'
        )
        parts.append(f'<text x="{x + 18}" y="{height - 13}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def spaced(heights: Sequence[float]) -> list[float]:
    """Move labels up where they would overlap."""
    moved = [0.0] * len(heights)
    last = float("inf")
    for index in sorted(range(len(heights)), key=lambda index: -heights[index]):
        last = moved[index] = min(heights[index], last - LABEL)
    return moved

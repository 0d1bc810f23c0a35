"""What the project's figures are drawn with: shapes and texts in a card, lines over two axes, bars. Used by
figures.py, and by tests/study.py for what it has measured. Needs the standard library alone."""

import math
from pathlib import Path
from xml.sax.saxutils import escape

# A card with a background of its own looks the same on a light page and on a dark one.
CARD, EDGE, INK, SOFT = "#ffffff", "#d0d7de", "#1f2328", "#59636e"
KEY, VALUE, LATENT, ROPE, QUERY, WEIGHT = "#5b8def", "#f0a35e", "#3aa17e", "#c678b5", "#8b93a1", "#e6eaf0"
FONT = "-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
COLORS = KEY, VALUE, ROPE, LATENT, QUERY  # of lines and bars, in turn
LEFT, TOP, RIGHT, BOTTOM = 76, 84, 100, 62  # of a chart's card, around the axes


class Svg:
    """Shapes and texts in a card of width x height."""

    def __init__(self, width, height, title):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def box(self, x, y, width, height, fill, stroke="none", radius=0):
        self.parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" rx="{radius}" '
            f'fill="{fill}" stroke="{stroke}"/>'
        )

    def text(self, x, y, text, size=14, color=INK, anchor="start", weight="normal"):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(text)}</text>'
        )

    def line(self, points, color, width=1.5, end=""):
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="{width}"{end}/>')

    def arrow(self, *points):
        """A line through the points (x, y), with a head at the last."""
        self.line(points, SOFT, end=' marker-end="url(#head)"')

    def dot(self, x, y, color):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')

    def save(self, path):
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="{FONT}" role="img">'
            f"<title>{escape(self.title)}</title>"
            '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="7" refY="4" orient="auto" '
            f'markerUnits="userSpaceOnUse"><path d="M0 0 L8 4 L0 8 z" fill="{SOFT}"/></marker></defs>'
        )
        card = Svg(self.width, self.height, "")
        card.box(0.5, 0.5, self.width - 1, self.height - 1, CARD, EDGE, 8)
        Path(path).write_text("\n".join([head, *card.parts, *self.parts, "</svg>", ""]), encoding="utf-8")
        print(f"{Path(path).parent.name}/{Path(path).name}: {self.title}")


# ---- charts


def ticks(least, most):
    """About five round numbers, the first at or below `least`, the last at or above `most`."""
    raw = (most - least or abs(most) or 1) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= raw)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(x):
    return f"{x:,.0f}" if x == round(x) else f"{x:,.4g}"


def lines_chart(path, title, note, labels, series, log=False):
    """series: {name: points (x, y)}, a line each; labels: of x and y; log: each doubling of x is as wide."""
    svg = Svg(860, 440, title)
    svg.text(24, 34, title, 17, weight="bold")
    svg.text(24, 56, note, 13, SOFT)
    width, height = svg.width - LEFT - RIGHT, svg.height - TOP - BOTTOM
    xs = [x for points in series.values() for x, _ in points]
    rows = ticks(min(y for points in series.values() for _, y in points),
                 max(y for points in series.values() for _, y in points))  # fmt: skip
    scale = math.log2 if log else float
    columns = ticks(min(xs), max(xs))
    if log:
        columns = [2**i for i in range(math.floor(scale(min(xs))), math.ceil(scale(max(xs))) + 1)]

    def place(x, y):
        across = (scale(x) - scale(columns[0])) / (scale(columns[-1]) - scale(columns[0]))
        return LEFT + across * width, TOP + height * (rows[-1] - y) / (rows[-1] - rows[0])

    for y in rows:
        svg.line([place(columns[0], y), place(columns[-1], y)], EDGE, 1)
        svg.text(LEFT - 8, place(columns[0], y)[1] + 4, number(y), 12, SOFT, "end")
    for x in columns:
        svg.text(place(x, rows[0])[0], TOP + height + 20, number(x), 12, SOFT, "middle")
    svg.text(LEFT + width / 2, svg.height - 18, labels[0], 13, SOFT, "middle")
    svg.text(24, TOP - 10, labels[1], 13, SOFT)
    taken = []  # heights of names at the right
    for (name, points), color in zip(series.items(), COLORS, strict=False):
        places = [place(*point) for point in sorted(points)]
        svg.line(places, color, 2.5)
        for at in places:
            svg.dot(*at, color)
        x, y = places[-1]
        while any(abs(y - other) < 16 and abs(x - there) < 60 for there, other in taken):
            y += 4
        taken.append((x, y))
        svg.text(x + 10, y + 4, name, 14, color, weight="bold")
    svg.save(path)


def bars_chart(path, title, note, bars):
    """bars: (name, length, what stands beside it)."""
    svg = Svg(860, 84 + 34 * len(bars), title)
    svg.text(24, 34, title, 17, weight="bold")
    svg.text(24, 56, note, 13, SOFT)
    names = 20 + 8 * max(len(name) for name, _, _ in bars)
    width = svg.width - names - 24 - 8 * max(len(text) for _, _, text in bars) - 30
    longest = max(length for _, length, _ in bars)
    for i, (name, length, text) in enumerate(bars):
        y = 74 + 34 * i
        svg.text(24, y + 16, name, 14)
        svg.box(24 + names, y, length / longest * width, 22, COLORS[i % len(COLORS)])
        svg.text(24 + names + length / longest * width + 8, y + 16, text, 13, SOFT)
    svg.save(path)

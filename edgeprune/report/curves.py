"""The picture of sensitivity: layers side by side, each with its own damage curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from edgeprune.inspect import rows_by
from edgeprune.report.words import digits
from edgeprune.sensitivity import Curve

WIDTH, LABEL, SCALE, ROW, HEAD = 1040, 190, 70, 74, 6
WIDEST = 190


def curves_picture(curves: Sequence[Curve]) -> str:
    """The SVG: one line a kind of site, one cell a layer; in it the damage from whole to cut.

    Every line has its own scale, from 0 to its largest damage; what is removed whole is a bar.
    """
    by_name = {curve.site.name: curve for curve in curves}
    rows = rows_by((curve.site for curve in curves), lambda site: site.axis)
    parts: list[str] = []
    for number, row in enumerate(rows):
        alike = [by_name[site.name] for site in row.sites]
        parts += _line(row.name, alike, HEAD + number * ROW)
    height = HEAD + len(rows) * ROW
    return (
        f'<svg id="curves" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Damage of cutting each site alone" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )


def _line(name: str, curves: Sequence[Curve], top: float) -> Iterator[str]:
    most = max(curve.worst for curve in curves) or 1.0
    step = min((WIDTH - LABEL - SCALE) / len(curves), WIDEST)
    base = top + ROW - 16
    yield f'<line class="rule" x1="0" x2="{WIDTH}" y1="{top}" y2="{top}"/>'
    words = name if len(name) <= 28 else f"…{name[-27:]}"
    title = f"<title>{escape(name)}</title>"
    yield f'<text x="0" y="{top + ROW / 2 + 4}">{escape(words)}{title}</text>'
    for number, curve in enumerate(curves):
        yield from _cell(curve, LABEL + number * step, base, step, (ROW - 28) / most)
    yield f'<text class="head" x="{WIDTH - SCALE + 8}" y="{top + 18}">{digits(most, 2)}</text>'
    yield f'<text class="head" x="{WIDTH - SCALE + 8}" y="{base + 4}">0</text>'


def _cell(curve: Curve, left: float, base: float, step: float, scale: float) -> Iterator[str]:
    gap = min(8.0, step / 5)
    width = step - gap
    said = "; ".join(f"{kept:,} kept: {digits(damage)}" for kept, damage in curve.points)
    title = f"<title>{escape(f'{curve.site.name}: {said}')}</title>"
    yield f'<g>{title}<rect class="cut" x="{left:.1f}" y="{base - ROW + 28:.1f}" '
    yield f'width="{width:.1f}" height="{ROW - 28}" rx="2"/>'
    if curve.site.kind == "depth":
        high = scale * curve.worst
        yield f'<rect class="kept" x="{left:.1f}" y="{base - high:.1f}" width="{width:.1f}" '
        yield f'height="{high:.1f}"/></g>'
        return
    units = curve.site.units
    places = [
        (left + width * (1 - kept / units), base - scale * max(damage, 0.0))
        for kept, damage in curve.points
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline class="curve" points="{path}"/>'
    for x, y in places[1:]:
        yield f'<circle class="kept" cx="{x:.1f}" cy="{y:.1f}" r="{min(2.4, width / 6):.1f}"/>'
    yield "</g>"

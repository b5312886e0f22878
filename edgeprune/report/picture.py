"""The picture of what was cut: one line a sub-layer, drawn as SVG."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

NAME, UNITS, TOKENS, ROW = 230, 420, 200, 26
GAP = 24
# Up to this many units each gets a square of its own; more share cells.
SQUARES = 32
CELLS = 64


def picture(layers: list[dict[str, Any]]) -> str:
    """The SVG: heads as squares, neurons as a density strip, tokens as a narrowing band."""
    width = NAME + UNITS + TOKENS + 3 * GAP + 70
    height = ROW * len(layers) + 34
    longest = max((row["tokens_in"] or 0 for row in layers), default=0)
    parts = [*_headings(longest)]
    tokens = longest
    for number, row in enumerate(layers):
        tokens = row["tokens_out"] if row["tokens_out"] is not None else tokens
        parts += _row(row, 30 + ROW * number, tokens, longest)
    title = "<title>What was cut, layer by layer</title>"
    return (
        f'<svg id="cut" viewBox="0 0 {width} {height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{title}{"".join(parts)}</svg>'
    )


def _headings(longest: int) -> Iterator[str]:
    yield '<text class="head" x="0" y="14">sub-layer</text>'
    yield f'<text class="head" x="{NAME}" y="14">units kept</text>'
    if longest:
        x = NAME + UNITS + 2 * GAP + 70
        yield f'<text class="head" x="{x}" y="14">tokens that go on</text>'


def _row(row: dict[str, Any], y: int, tokens: int, longest: int) -> Iterator[str]:
    gone = row["removed"]
    label = f"{escape(_short(row['name']))}<title>{escape(row['name'])}</title>"
    yield f'<text class="{"gone" if gone else "name"}" x="0" y="{y + 14}">{label}</text>'
    cells = _cells(row["kept"], row["total"])
    step = UNITS / len(cells)
    inset = 2 if row["total"] <= SQUARES else 0
    for i, share in enumerate(cells):
        filled = 0.0 if gone else share
        yield (
            f'<rect class="unit" x="{NAME + i * step:.1f}" y="{y + 2}" '
            f'width="{max(step - inset, 1):.1f}" height="{ROW - 8}" rx="2" '
            f'style="fill-opacity:{0.10 + 0.90 * filled:.2f}"/>'
        )
    text = "removed" if gone else f"{len(row['kept'])}/{row['total']} {row['axis'] or ''}"
    yield f'<text class="count" x="{NAME + UNITS + 10}" y="{y + 14}">{escape(text)}</text>'
    if longest:
        x = NAME + UNITS + 2 * GAP + 70
        width = TOKENS * tokens / longest
        yield f'<rect class="rest" x="{x}" y="{y}" width="{TOKENS}" height="{ROW}"/>'
        yield f'<rect class="token" x="{x}" y="{y}" width="{width:.1f}" height="{ROW}"/>'
        if row["tokens_out"] is not None and row["tokens_out"] != row["tokens_in"]:
            yield f'<text class="drop" x="{x + width + 4:.1f}" y="{y + 14}">{tokens}</text>'


def _cells(kept: list[int], total: int) -> list[float]:
    """Share of kept units per cell."""
    count = total if total <= SQUARES else min(CELLS, total)
    full, left = [0] * count, [0] * count
    chosen = set(kept)
    for unit in range(total):
        cell = unit * count // total
        full[cell] += 1
        left[cell] += unit in chosen
    return [kept_here / all_here for kept_here, all_here in zip(left, full, strict=True)]


def _short(name: str) -> str:
    """The end of a long name; the whole of it shows on hover."""
    words = name.split(".")
    return name if len(words) <= 3 else "… " + ".".join(words[-3:])

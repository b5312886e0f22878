"""The picture of what was cut: one line a layer, its units beside it, and the tokens' funnel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from edgeprune.report.schema import Layer
from edgeprune.report.words import axis_word, percent

WIDTH, LABEL, COUNT, GAP, FUNNEL, HEAD = 1040, 118, 86, 32, 210, 34
# More sub-layers than this in one layer get a line each.
MOST_COLUMNS = 3
# Units that get a square of their own; of more, a bar says how many and a barcode which.
SQUARES = 32
CODES = 96
# Line height by how many lines there are, so that 48 layers still fit a screen or two.
HEIGHTS = ((14, 38), (28, 28), (60, 19))
LEAST_HEIGHT = 14
# Units named one by one when a pointer rests on them.
MOST_NAMED = 64


@dataclass(frozen=True)
class Grid:
    """Where things are, in SVG units.

    Attributes:
        row: height of a line.
        column: width of a column's drawing, its count not included.
        funnel: left edge of the tokens; None if the model has none.
    """

    row: int
    columns: int
    column: float
    funnel: float | None

    def x(self, column: int) -> float:
        """Left edge of a column."""
        return LABEL + column * (self.column + COUNT + GAP)

    def y(self, row: int) -> float:
        """Top of a line."""
        return HEAD + row * self.row


def picture(layers: Sequence[Layer]) -> str:
    """The SVG: heads as squares, neurons as bars, removed sub-layers struck out."""
    lines = _lines(layers)
    grid = _grid(lines)
    parts = [*_headings(lines, grid)]
    for number, line in enumerate(lines):
        parts += _line(line, number, grid)
    if grid.funnel is not None:
        parts += _funnel(lines, grid)
    height = grid.y(len(lines)) + 22
    return (
        f'<svg id="cut" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(summary(layers))}" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )


def summary(layers: Sequence[Layer]) -> str:
    """The cut in one line: units kept per axis, sub-layers removed, tokens at both ends."""
    words = []
    for axis in dict.fromkeys(layer.axis for layer in layers if layer.axis):
        same = [layer for layer in layers if layer.axis == axis]
        kept = sum(0 if layer.removed else len(layer.kept) for layer in same)
        total = sum(layer.total for layer in same)
        words.append(f"{kept:,} of {total:,} {axis_word(axis)} kept ({percent(kept, total)})")
    removed = sum(layer.removed for layer in layers)
    words.append(f"{removed} of {len(layers)} sub-layers removed")
    tokens = [layer for layer in layers if layer.tokens_in is not None]
    if tokens and tokens[0].tokens_in != tokens[-1].tokens_out:
        words.append(f"{tokens[0].tokens_in} tokens in, {tokens[-1].tokens_out} out")
    return " · ".join(words)


def legend(layers: Sequence[Layer]) -> str:
    """What the marks mean; only those that are there."""
    marks = (
        ("kept", "kept", True),
        ("cut", "cut", True),
        ("strike", "sub-layer removed", any(layer.removed for layer in layers)),
        ("code", "which of many are kept", any(layer.total > SQUARES for layer in layers)),
        ("tokens", "tokens that go on", any(layer.tokens_in is not None for layer in layers)),
    )
    return "".join(f'<span class="key {key}"></span>{text}' for key, text, used in marks if used)


def _lines(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Sub-layers of the same layer side by side, unless they are too many."""
    found = [list(line) for _, line in groupby(layers, lambda layer: _parent(layer.name))]
    if max(map(len, found), default=0) > MOST_COLUMNS:
        return [[layer] for layer in layers]
    return found


def _grid(lines: list[list[Layer]]) -> Grid:
    columns = max(map(len, lines), default=1)
    has_tokens = any(layer.tokens_in is not None for line in lines for layer in line)
    right = WIDTH - (FUNNEL + GAP if has_tokens else 0)
    column = (right - LABEL - GAP * (columns - 1)) / columns - COUNT
    row = next((height for most, height in HEIGHTS if len(lines) <= most), LEAST_HEIGHT)
    return Grid(row, columns, column, WIDTH - FUNNEL if has_tokens else None)


def _headings(lines: list[list[Layer]], grid: Grid) -> Iterator[str]:
    for column in range(grid.columns):
        here = [line[column] for line in lines if len(line) > column]
        names = {layer.name.rpartition(".")[2] for layer in here} if grid.columns > 1 else set()
        axes = {axis_word(layer.axis) for layer in here} - {""}
        words = [*(names if len(names) == 1 else ()), *(axes if len(axes) == 1 else ("units",))]
        yield _text(grid.x(column), 16, "head", " · ".join(words))
    if grid.funnel is not None:
        yield _text(grid.funnel + FUNNEL / 2, 16, "head mid", "tokens")


def _line(line: list[Layer], number: int, grid: Grid) -> Iterator[str]:
    y = grid.y(number)
    gone = all(layer.removed for layer in line)
    label, name = _label(line), _parent(line[0].name) or line[0].name
    hover = f"<title>{escape(name)}</title>"
    yield f'<line class="rule" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
    style = f"{'gone' if gone else 'name'}{' small' if grid.row < 24 else ''}"
    baseline = y + grid.row / 2 + 4
    yield f'<text class="{style}" x="0" y="{baseline:.1f}">{escape(label)}{hover}</text>'
    for column, layer in enumerate(line):
        yield from _cell(layer, grid.x(column), y, grid)


def _cell(layer: Layer, x: float, y: float, grid: Grid) -> Iterator[str]:
    """One sub-layer: its units, a strike through them if it is gone, and the count."""
    few = layer.total <= SQUARES
    drawn = "".join(_squares(layer, x, y, grid) if few else _bar(layer, x, y, grid))
    kind = "cell removed" if layer.removed else "cell"
    yield f'<g class="{kind}"><title>{escape(_hover(layer))}</title>{drawn}</g>'
    middle = y + grid.row / 2
    end = x + (_side(layer, grid)[0] * layer.total if few else grid.column)
    if layer.removed:
        yield (
            f'<line class="strike" x1="{x - 5:.1f}" x2="{end + 3:.1f}" '
            f'y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
    style = f"count{' small' if grid.row < 24 else ''}{' out' if layer.removed else ''}"
    yield _text(x + grid.column + 10, middle + 4, style, _count(layer))


def _count(layer: Layer) -> str:
    if layer.removed:
        return "removed"
    if layer.axis is None:
        return "kept"
    if layer.total > SQUARES:
        return f"{len(layer.kept):,} · {percent(len(layer.kept), layer.total)}"
    return f"{len(layer.kept)} of {layer.total}"


def _squares(layer: Layer, x: float, y: float, grid: Grid) -> Iterator[str]:
    step, side = _side(layer, grid)
    top = y + (grid.row - side) / 2
    kept = set(layer.kept)
    for unit in range(layer.total):
        style = "kept" if unit in kept and not layer.removed else "cut"
        inset = 0.0 if style == "kept" else 0.5
        yield (
            f'<rect class="{style}" x="{x + unit * step + inset:.1f}" y="{top + inset:.1f}" '
            f'width="{side - 2 * inset:.1f}" height="{side - 2 * inset:.1f}" '
            f'rx="{min(3.0, side / 5):.1f}"/>'
        )


def _side(layer: Layer, grid: Grid) -> tuple[float, float]:
    """Distance of two squares, and their side."""
    step = min(grid.row * 0.66, grid.column / layer.total, 24.0)
    return step, step - min(4.0, step / 5)


def _bar(layer: Layer, x: float, y: float, grid: Grid) -> Iterator[str]:
    """How many are kept as a bar; which ones as a barcode under it."""
    thick = max(5.0, grid.row * 0.36)
    code = 0.0 if layer.removed else max(2.0, grid.row * 0.13)
    top = y + (grid.row - thick - code - (2 if code else 0)) / 2
    yield (
        f'<rect class="cut" x="{x + 0.5:.1f}" y="{top + 0.5:.1f}" '
        f'width="{grid.column - 1:.1f}" height="{thick - 1:.1f}" rx="2"/>'
    )
    if layer.removed:
        return
    width = grid.column * len(layer.kept) / layer.total
    yield (
        f'<rect class="kept" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{thick:.1f}" rx="2"/>'
    )
    cells = _shares(layer)
    step = grid.column / len(cells)
    for i, filled in enumerate(cells):
        if filled:
            yield (
                f'<rect class="code" x="{x + i * step:.1f}" y="{top + thick + 2:.1f}" '
                f'width="{step + 0.1:.1f}" height="{code:.1f}" fill-opacity="{filled:.2f}"/>'
            )


def _shares(layer: Layer) -> list[float]:
    """The share of kept units in each stretch of the barcode."""
    count = min(CODES, layer.total)
    whole, left = [0] * count, [0] * count
    kept = set(layer.kept)
    for unit in range(layer.total):
        stretch = unit * count // layer.total
        whole[stretch] += 1
        left[stretch] += unit in kept
    return [some / every for some, every in zip(left, whole, strict=True)]


def _funnel(lines: list[list[Layer]], grid: Grid) -> Iterator[str]:
    """The tokens that go on, as one silhouette that narrows where some are dropped."""
    layers = [layer for line in lines for layer in line]
    counts = [layer.tokens_in for layer in layers if layer.tokens_in is not None]
    scale = FUNNEL / 2 / max(*counts, 1)
    middle, end = (grid.funnel or 0.0) + FUNNEL / 2, grid.y(len(lines))
    drops = _drops(lines, grid, counts[0])
    edges = [(before * scale, after * scale, top, low) for before, after, top, low in drops]
    first, last = counts[0], drops[-1][1] if drops else counts[0]
    yield (
        f'<rect class="all" x="{middle - FUNNEL / 2:.1f}" y="{HEAD}" width="{FUNNEL}" '
        f'height="{end - HEAD:.1f}" rx="3"/>'
    )
    yield f'<path class="tokens" d="{_outline(middle, edges, last * scale, HEAD, end)}"/>'
    yield _text(middle, HEAD - 5, "drop mid", f"{first}")
    for _, after, _, low in drops:
        yield _text(middle + after * scale + 6, min(low + 9, end - 3), "drop", f"{after}")
    yield _text(middle, end + 15, "drop mid", f"{last}")


def _drops(
    lines: list[list[Layer]], grid: Grid, tokens: int
) -> list[tuple[int, int, float, float]]:
    """Where the number of tokens changes: before, after, and the stretch in which it is drawn."""
    found = []
    for number, line in enumerate(lines):
        height = grid.row / len(line)
        for place, layer in enumerate(line):
            if layer.tokens_out is not None and layer.tokens_out != tokens:
                low = grid.y(number) + height * (place + 1)
                found.append((tokens, layer.tokens_out, low - 0.9 * height, low))
                tokens = layer.tokens_out
    return found


def _outline(
    middle: float,
    edges: list[tuple[float, float, float, float]],
    last: float,
    top: float,
    bottom: float,
) -> str:
    """Down the right side with a soft shoulder at every drop, and up the left one."""
    first = edges[0][0] if edges else last
    path = [f"M{middle + first:.1f},{top:.1f}"]
    for wide, narrow, begin, end in edges:
        bend = (begin + end) / 2
        path.append(f"L{middle + wide:.1f},{begin:.1f}")
        path.append(
            f"C{middle + wide:.1f},{bend:.1f} {middle + narrow:.1f},{bend:.1f} "
            f"{middle + narrow:.1f},{end:.1f}"
        )
    path.append(f"L{middle + last:.1f},{bottom:.1f}L{middle - last:.1f},{bottom:.1f}")
    for wide, narrow, begin, end in reversed(edges):
        bend = (begin + end) / 2
        path.append(f"L{middle - narrow:.1f},{end:.1f}")
        path.append(
            f"C{middle - narrow:.1f},{bend:.1f} {middle - wide:.1f},{bend:.1f} "
            f"{middle - wide:.1f},{begin:.1f}"
        )
    path.append(f"L{middle - first:.1f},{top:.1f}Z")
    return "".join(path)


def _label(line: list[Layer]) -> str:
    """The end of the layer's name: ``encoder.layer.3`` is "layer 3"."""
    name = line[0].name if len(line) == 1 else _parent(line[0].name)
    words = name.split(".")
    text = " ".join(words[-2:]) if len(line) > 1 else ".".join(words[-2:])
    return text if len(text) <= 18 else "…" + text[-17:]


def _hover(layer: Layer) -> str:
    if layer.removed:
        return f"{layer.name}: removed"
    if layer.axis is None:
        return f"{layer.name}: kept whole"
    text = f"{layer.name}: {len(layer.kept)} of {layer.total} {axis_word(layer.axis)} kept"
    if len(layer.kept) < layer.total <= MOST_NAMED:
        gone = sorted(set(range(layer.total)) - set(layer.kept))
        text += f"; cut: {', '.join(map(str, gone))}"
    return text


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _text(x: float, y: float, style: str, text: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'

"""Which sizes to measure next: where the samples at hand say least about the gaps between them.

Straight interpolation is what a Brownian process expects between its samples; its spread grows
with the square root of the distance from them. How rough a line is, its samples say: each is left
out and predicted by its neighbours. In ten measured tables (MiniLM and a small vision transformer
on x86-64) 92% of the sizes that were left unmeasured lay within two standard deviations. A smooth
process would not do: latencies step with the tiles of the kernels, and in MiniLM it stated 0.5%
where 4.5% were missed.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeprune.cost.blocks import Block, overhead_tokens, sizes_of
from edgeprune.cost.table import Line, line_at

Size = tuple[int, int]
"""(units, tokens)."""

Ratios = Mapping[tuple[str, Size], float]
"""(block's name, size) -> latency of one sub-layer over the dense model's."""

# Shares of a line at which sampling starts: two samples that can be left out.
FIRST_SHARES = (0.0, 1 / 4, 1 / 2, 1.0)
# How many left-out samples of its own a line needs until they count as much as all lines'.
SHARED = 2
SIGMAS = 2.0


@dataclass(frozen=True)
class Doubt:
    """A size that was not measured.

    Attributes:
        gap: the line, and how many of its samples lie below: one more sample there changes it.
        share: how far the table may be off there (two standard deviations), of the dense
            model's latency, were all sub-layers of the block of this size.
    """

    block: Block
    size: Size
    gap: tuple[str, int, int]
    share: float


def first_sizes(block: Block, tokens: Sequence[int] | None) -> list[Size]:
    """Where sampling starts: the two lines coarsely, the rectangle inside, and what is fitted to.

    Args:
        tokens: token counts that plans will use; by default an even spread.
    """
    lines = _lines(block, tokens)
    inside = set(sizes_of(block, tokens)).difference(*lines)
    beside_one = {(block.units, count) for count in overhead_tokens(block)}
    coarse = {
        min(line, key=lambda size: abs(_place(block, size) - share))
        for line in lines
        for share in FIRST_SHARES
    }
    return sorted(inside | coarse | beside_one)


def doubts(blocks: Sequence[Block], tokens: Sequence[int] | None, ratios: Ratios) -> list[Doubt]:
    """Every size on the blocks' lines that was not measured, the most doubtful first.

    Args:
        tokens: as of ``first_sizes``.
        ratios: of what was measured; both ends of every line are among it.
    """
    lines = [
        (block, number, sizes, _measured(block, sizes, ratios))
        for block in blocks
        for number, sizes in enumerate(_lines(block, tokens))
    ]
    own = [_roughness(line) for *_, line in lines]
    everywhere = statistics.fmean([each for some in own for each in some] or [0.0])
    found = []
    for (block, number, sizes, line), some in zip(lines, own, strict=True):
        rough = (SHARED * everywhere + sum(some)) / (SHARED + len(some))
        for size in sizes:
            if (block.name, size) not in ratios:
                below = bisect_left(line, (_place(block, size),))
                share = SIGMAS * len(block.parts) * _spread(line, _place(block, size), rough)
                found.append(Doubt(block, size, (block.name, number, below), share))
    return sorted(found, key=lambda each: (-each.share, each.block.name, each.size))


def expected_pct(doubtful: Sequence[Doubt]) -> float:
    """How far interpolation may put a plan off, in percent of the dense latency.

    Two standard deviations, were every sub-layer of its kind's worst size; kinds err
    independently.
    """
    worst: dict[str, float] = {}
    for each in doubtful:
        worst[each.block.name] = max(worst.get(each.block.name, 0.0), each.share)
    return 100 * sum(share * share for share in worst.values()) ** 0.5


def most_informative(doubtful: Sequence[Doubt], count: int) -> list[Doubt]:
    """The first of every gap, at most ``count``."""
    chosen: dict[object, Doubt] = {}
    for each in doubtful:
        chosen.setdefault(each.gap, each)
    return list(chosen.values())[:count]


def _lines(block: Block, tokens: Sequence[int] | None) -> list[list[Size]]:
    """Along units at all tokens, and along tokens at all units."""
    every = sizes_of(block, tokens)
    return [
        [size for size in every if size[1] == block.tokens],
        [size for size in every if size[0] == block.units],
    ]


def _place(block: Block, size: Size) -> float:
    """Where on its line a size lies, as a share of the whole."""
    units, tokens = size
    return (units / block.units) * (tokens / block.tokens)


def _measured(block: Block, sizes: Sequence[Size], ratios: Ratios) -> Line:
    known = [size for size in sizes if (block.name, size) in ratios]
    return tuple((_place(block, size), ratios[block.name, size]) for size in known)


def _roughness(line: Line) -> list[float]:
    """Of each sample with two neighbours: its squared left-out miss over what distance allows.

    Relative to the line's full value, so that lines can be compared.
    """
    found = []
    for left, (x, y), right in zip(line, line[1:], line[2:], strict=False):
        missed = (line_at((left, right), x) - y) / line[-1][1]
        found.append(missed**2 / _bridge(left[0], x, right[0]))
    return found


def _spread(line: Line, x: float, roughness: float) -> float:
    """The standard deviation at a place between two samples."""
    after = bisect_left(line, (x,))
    allowed = _bridge(line[after - 1][0], x, line[after][0])
    return line[-1][1] * float((roughness * allowed) ** 0.5)


def _bridge(left: float, x: float, right: float) -> float:
    """The variance of a Brownian bridge of unit roughness."""
    return (x - left) * (right - x) / (right - left)

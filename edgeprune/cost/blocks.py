"""Blocks: sub-layers that cost the same, and the sizes at which they are sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from edgeprune.plan import Plan
from edgeprune.program.graph import op_name, shape
from edgeprune.sites import Site, Sites
from edgeprune.sites.depth import Residual
from edgeprune.surgery.pieces import token_dim

# Shares of all units and of all tokens at which a block is sampled, each with the other at full
# size; the coarse ones also with each other.
UNIT_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
TOKEN_SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0)
COARSE_UNITS = (1 / 8, 1 / 2)
COARSE_TOKENS = (1 / 8, 1 / 2)
OVERHEAD_TOKENS = (1 / 8, 1 / 2, 1.0)
# How many copies a chain has, at most.
COPIES = 3
# Sizes above this are cut in whole tiles of the matrix kernels, tokens in rows of eight.
TILED_UNITS, UNIT_TILE = 256, 32
TILED_TOKENS, TOKEN_TILE = 64, 8


@dataclass(frozen=True)
class Block:
    """Sub-layers of the same operators and shapes.

    Attributes:
        residuals: the members, in graph order.
        units: of the main site; 1 where there is no width site.
        tokens: on the stream when nothing is cut; 1 where the stream has no token dimension.
        width: elements of the stream per token.
        shrinks: whether the stream's tokens can be selected.
    """

    residuals: tuple[Residual, ...]
    units: int
    tokens: int
    width: int
    shrinks: bool

    @property
    def name(self) -> str:
        """Of the first member."""
        return self.residuals[0].name


def find_blocks(sites: Sites) -> tuple[Block, ...]:
    """The program's sub-layers, those alike together."""
    alike: dict[object, list[Residual]] = {}
    for residual in sites.residuals:
        alike.setdefault(_signature(sites, residual), []).append(residual)
    return tuple(_block(sites, members) for members in alike.values())


def width_sites(sites: Sites, residual: Residual) -> tuple[Site, ...]:
    """The width sites that can be cut and lie within this sub-layer alone, the main one first.

    The main site is what ``units`` of a block count: heads, kv groups, neurons or channels.
    """
    own = set(residual.weights) - sites.shared
    found = [
        site
        for site in sites.cuttable
        if site.kind == "width" and {path for path, _ in site.weights} <= own
    ]
    return tuple(sorted(found, key=lambda site: site.axis == "queries_per_group"))


def units_kept(sites: Sites, residual: Residual, plan: Plan) -> float:
    """Units of the main site with the same work: the shares of all its sites multiply."""
    own = width_sites(sites, residual)
    if residual.name in plan.kept or residual.layer in plan.kept:
        return 0.0
    units = float(own[0].units) if own else 1.0
    for site in own:
        if site.name in plan.kept:
            units *= len(plan.kept[site.name]) / site.units
    return units


def unit_levels(block: Block, shares: Sequence[float] = UNIT_SHARES) -> tuple[int, ...]:
    """Numbers of units to sample, ascending."""
    tile = UNIT_TILE if block.units >= TILED_UNITS else 1
    return _levels(block.units, shares, tile)


def token_levels(block: Block, shares: Sequence[float] = TOKEN_SHARES) -> tuple[int, ...]:
    """Token counts to sample, ascending; only the full one where tokens cannot be selected."""
    if not block.shrinks:
        return (block.tokens,)
    tile = TOKEN_TILE if block.tokens >= TILED_TOKENS else 1
    return _levels(block.tokens, shares, tile)


def sizes_of(block: Block, tokens: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """(units, tokens) at which a block is sampled: two full lines, and a coarse rectangle."""
    units, counts = unit_levels(block), token_levels(block)
    if tokens and block.shrinks:
        counts = tuple(sorted({*tokens, *token_levels(block, COARSE_TOKENS), block.tokens}))
    inner_units = unit_levels(block, COARSE_UNITS)
    inner_counts = token_levels(block, COARSE_TOKENS)
    sizes = {(u, block.tokens) for u in (*units, *inner_units)}
    sizes |= {(block.units, t) for t in counts}
    sizes |= {(u, t) for u in inner_units for t in inner_counts}
    return sorted(sizes)


def overhead_tokens(block: Block) -> tuple[int, ...]:
    """Token counts at which one copy is timed too, and the removed block."""
    return token_levels(block, OVERHEAD_TOKENS)


def kept_units(sites: Sites, block: Block, copies: int, units: int) -> dict[str, int]:
    """The main site's units of each of the first ``copies`` members."""
    members = [width_sites(sites, each) for each in block.residuals[:copies]]
    return {own[0].name: units for own in members if own}


def copies_of(block: Block) -> int:
    """How many members a chain has."""
    return min(COPIES, len(block.residuals))


def block_point(block: Block, copies: int, units: int, tokens: int) -> str:
    """A block's point by name; 0 units stand for removed."""
    return f"block {block.name} x{copies} {units} units {tokens} tokens"


def _levels(size: int, shares: Sequence[float], tile: int) -> tuple[int, ...]:
    return tuple(sorted({min(size, max(tile, round(size * s / tile) * tile)) for s in shares}))


def _block(sites: Sites, members: list[Residual]) -> Block:
    first = members[0]
    own = width_sites(sites, first)
    dim = token_dim(sites, first)
    cut = {stream.tokens.root for stream in sites.streams if stream.why_not is None}
    units = own[0].units if own else 1
    tokens = dim.size if dim else 1
    width = math.prod(shape(first.add)[1:]) // tokens
    return Block(tuple(members), units, tokens, width, dim in cut)


def _signature(sites: Sites, residual: Residual) -> object:
    nodes = (*residual.nodes, residual.add, *residual.closing_norms)
    axes = tuple((site.axis, site.units) for site in width_sites(sites, residual))
    return axes, token_dim(sites, residual), tuple(_described(node) for node in nodes)


def _described(node: fx.Node) -> object:
    return op_name(node), shape(node), tuple(shape(n) for n in node.all_input_nodes)

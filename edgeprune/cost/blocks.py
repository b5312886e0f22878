"""Blocks: parts that cost the same, and the sizes at which they are sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from edgeprune.plan import Plan
from edgeprune.program.graph import op_name, shape
from edgeprune.sites import Sites
from edgeprune.sites.atoms import Dim, positions
from edgeprune.sites.depth import Residual
from edgeprune.sites.parts import Part, width_sites
from edgeprune.surgery.pieces import Piece, chain, chunk, token_dim

# Shares of all units and of all tokens at which a block is sampled, each with the other at full
# size; the coarse ones also with each other.
UNIT_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
TOKEN_SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0)
COARSE_UNITS = (1 / 8, 1 / 2)
COARSE_TOKENS = (1 / 8, 1 / 2)
OVERHEAD_TOKENS = (1 / 8, 1 / 2, 1.0)
# Shares of a spanning site's units at which every block that carries it is sampled, all else whole.
SPAN_SHARES = (1 / 4, 1 / 2)
# How many copies a chain has, at most.
COPIES = 3
# Sizes above this are cut in whole tiles of the matrix kernels, tokens in rows of eight.
TILED_UNITS, UNIT_TILE = 256, 32
TILED_TOKENS, TOKEN_TILE = 64, 8
TILED_SPAN, SPAN_TILE = 32, 8

Span = tuple[int, int]
"""(place of a spanning site in its part's list, units kept)."""


@dataclass(frozen=True)
class Block:
    """Parts of the same operators and shapes.

    Attributes:
        parts: the members, in graph order: sub-layers, or chunks outside of all.
        units: of the main site; 1 where there is no width site.
        tokens: on the stream when nothing is cut; 1 where the stream has no token dimension.
        width: elements of the stream per token; of a chunk, the mean of what goes in and out.
        shrinks: whether the stream's tokens can be selected.
    """

    parts: tuple[Part, ...]
    units: int
    tokens: int
    width: int
    shrinks: bool

    @property
    def name(self) -> str:
        """Of the first member."""
        return self.parts[0].name

    @property
    def residuals(self) -> tuple[Residual, ...]:
        """The members that are sub-layers: all or none."""
        return tuple(part.residual for part in self.parts if part.residual is not None)

    @property
    def closes(self) -> bool:
        """Whether something stays of a member when it is removed."""
        return any(residual.closing_norms for residual in self.residuals[:1])


def find_blocks(sites: Sites) -> tuple[Block, ...]:
    """The program's parts, those alike together: sub-layers, then chunks."""
    alike: dict[object, list[Part]] = {}
    for part in sites.parts:
        alike.setdefault(_signature(sites, part), []).append(part)
    return tuple(_block(sites, members) for members in alike.values())


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


def spans_of(sites: Sites, block: Block) -> list[Span]:
    """Where a block is sampled along the sites that span it."""
    found = []
    for place, name in enumerate(block.parts[0].spanning):
        units = sites.get(name).units
        tile = SPAN_TILE if units >= TILED_SPAN else 1
        levels = _levels(units, SPAN_SHARES, tile)
        found += [(place, level) for level in levels if level < units]
    return found


def piece_of(
    sites: Sites, block: Block, copies: int, units: int, tokens: int, span: Span | None = None
) -> Piece:
    """The first ``copies`` members on their own; 0 units leave only what closes them."""
    kept: dict[str, int] = {}
    if span is not None:
        kept = {part.spanning[span[0]]: span[1] for part in block.parts[:copies]}
    if not block.residuals:
        return chunk(sites, block.parts[0], kept)
    members = block.residuals[:copies]
    for own in (width_sites(sites, each) for each in members if units):
        kept |= {site.name: units for site in own[:1]}
    return chain(sites, members, kept, tokens, removed=not units)


def elements(sites: Sites, part: Part, kept: Mapping[str, int]) -> float:
    """Of all that goes in and out of a part, the mean of both, at batch 1 and all tokens."""
    atoms = {sites.atoms[name].root: tuple(range(n)) for name, n in kept.items()}

    def count(node: fx.Node) -> int:
        every = (dim for dims in sites.flow.outputs(node) for dim in dims)
        return math.prod(_size(dim, atoms) for dim in every if not dim.contains(sites.flow.batch))

    return sum(count(node) for side in part.boundary() for node in side) / 2


def copies_of(block: Block) -> int:
    """How many members a chain has; a chunk stands alone."""
    return min(COPIES, len(block.residuals)) or 1


def block_point(
    block: Block, copies: int, units: int, tokens: int, span: Span | None = None
) -> str:
    """A block's point by name; 0 units stand for removed."""
    name = f"block {block.name} x{copies} {units} units {tokens} tokens"
    return name if span is None else f"{name}, {span[1]} of {block.parts[0].spanning[span[0]]}"


def _levels(size: int, shares: Sequence[float], tile: int) -> tuple[int, ...]:
    return tuple(sorted({min(size, max(tile, round(size * s / tile) * tile)) for s in shares}))


def _block(sites: Sites, members: list[Part]) -> Block:
    first = members[0].residual
    if first is None:
        return Block(tuple(members), 1, 1, round(elements(sites, members[0], {})), False)
    own = width_sites(sites, first)
    dim = token_dim(sites, first)
    cut = {stream.tokens.root for stream in sites.streams if stream.why_not is None}
    units = own[0].units if own else 1
    tokens = dim.size if dim else 1
    width = math.prod(shape(first.add)[1:]) // tokens
    return Block(tuple(members), units, tokens, width, dim in cut)


def _size(dim: Dim, kept: Mapping[Dim, tuple[int, ...]]) -> int:
    touched = any(leaf in kept for leaf in dim.leaves())
    return len(positions(dim, dict(kept))) if touched else dim.size


def _signature(sites: Sites, part: Part) -> object:
    spanning = tuple((sites.axes[name], sites.atoms[name].size) for name in part.spanning)
    described = (spanning, tuple(_described(node) for node in part.nodes))
    if part.residual is None:
        return described
    own = tuple((site.axis, site.units) for site in width_sites(sites, part.residual))
    return own, token_dim(sites, part.residual), described


def _described(node: fx.Node) -> object:
    return op_name(node), shape(node), tuple(shape(n) for n in node.all_input_nodes)

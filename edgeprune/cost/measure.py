"""Measured costs: pieces lowered as the model will be, timed on the device at sampled sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from edgeprune import console
from edgeprune.cost import shelf
from edgeprune.cost.blocks import (
    Block,
    Span,
    block_point,
    copies_of,
    find_blocks,
    overhead_tokens,
    piece_of,
    sizes_of,
    spans_of,
)
from edgeprune.cost.fit import fit_table
from edgeprune.cost.plans import DENSE, anchor_plans, selection_plans
from edgeprune.cost.samples import BATCH, Lowerable, Point, Sampler, Samples, samples_file
from edgeprune.cost.sampling import Size, doubts, expected_pct, first_sizes, most_informative
from edgeprune.cost.table import CostTable
from edgeprune.devices.device import Device
from edgeprune.lower.lowering import Lowering
from edgeprune.plan import Plan
from edgeprune.sites import Sites
from edgeprune.surgery import apply

# How far interpolation may put a plan off, in percent of the dense latency. MiniLM on one x86-64
# core reaches it with 30 of 42 sizes; the fit to whole models errs by as much.
ERROR_PCT = 2.5


def measure_costs(
    sites: Sites,
    device: Device,
    lowering: Lowering,
    *,
    tokens: Sequence[int] | None = None,
    seed: int = 0,
    error_pct: float = ERROR_PCT,
) -> CostTable:
    """Measure what the model's pieces cost on a device.

    Sub-layers of one kind are timed as a chain of copies with weights of their own, chunks outside
    of them alone: each at a few units of every width that spans several; sub-layers first at a few
    units × tokens, then wherever the table is most in doubt, until it states the error that
    was asked for or every size is measured; selections as whole programs with and without; a few
    whole random plans fix the scale and the constant part. All timings are ratios to the dense
    model, run in turns. Samples are kept as they come, so a run that was stopped goes on, and a
    second one with the same shapes, lowering, device, versions and code measures nothing.

    Args:
        sites: of the dense program.
        device: open; its threads are the table's.
        tokens: token counts that plans will use, to be sampled; by default an even spread.
        seed: of the order of measuring and of the whole-model plans.
        error_pct: of interpolation, in percent of the dense latency, at which to stop.

    Raises:
        EdgepruneError: a piece cannot be lowered, or the device failed.
    """
    blocks = find_blocks(sites)
    plans = anchor_plans(sites, seed)
    points = {point.name: point for point in sample_points(sites, blocks, plans, tokens)}
    later = {
        _chain_name(block, size)
        for block in blocks
        for size in set(sizes_of(block, tokens)).difference(first_sizes(block, tokens))
    }
    first = [point for name, point in points.items() if name not in later]
    np.random.default_rng(seed).shuffle(first)  # type: ignore[arg-type]
    path = samples_file(sites.program, device, lowering)
    with Sampler(sites.program, device, lowering, path, points) as sampler:
        sampler.take(first)
        while True:
            doubtful = doubts(blocks, tokens, _ratios(blocks, tokens, sampler.taken))
            expected = expected_pct(doubtful)
            if expected <= error_pct:
                break
            more = [
                points[_chain_name(each.block, each.size)]
                for each in most_informative(doubtful, BATCH)
            ]
            sampler.take(more, f"±{expected:.1f}% of {error_pct:g}%")
    table = fit_table(sites, blocks, plans, sampler.taken, lowering)
    console.say(
        f"  cost table: {len(sampler.taken)} of {len(points)} files measured, plans within "
        f"±{expected:.1f}% of the dense latency between them (asked for {error_pct:g}%)"
    )
    errors = {"between_samples": expected} | table.error_pct
    table = replace(made_on(table, device), error_pct=errors)
    shelf.keep(table)
    return table


def made_on(table: CostTable, device: Device) -> CostTable:
    """The table with where it was made; of the device its kind, never its address."""
    state = device.state()
    return replace(
        table,
        device=f"{device.name.partition(':')[0]}: {shelf.processor_of(state)}",
        system=state.system,
        versions=state.versions,
        threads=state.threads,
    )


def _ratios(
    blocks: Sequence[Block], tokens: Sequence[int] | None, samples: Samples
) -> dict[tuple[str, Size], float]:
    return {
        (block.name, size): samples[name].ratio / copies_of(block)
        for block in blocks
        for size in sizes_of(block, tokens)
        if (name := _chain_name(block, size)) in samples
    }


def sample_points(
    sites: Sites,
    blocks: Sequence[Block],
    plans: Mapping[str, Plan],
    tokens: Sequence[int] | None,
) -> Iterator[Point]:
    """All that ``fit_table`` needs samples of."""
    for block in blocks:
        copies = copies_of(block)
        for units, count in sizes_of(block, tokens):
            yield _block_point(sites, block, copies, units, count)
        for count in overhead_tokens(block):
            if copies > 1:
                yield _block_point(sites, block, 1, block.units, count)
            if block.closes:
                yield _block_point(sites, block, copies, 0, count)
        for span in spans_of(sites, block):
            yield _block_point(sites, block, copies, block.units, block.tokens, span)
    for name, plan in selection_plans(sites).items():
        yield Point(name, partial(whole_model, sites, plan))
    yield from anchor_points(sites, plans)


def anchor_points(sites: Sites, plans: Mapping[str, Plan]) -> list[Point]:
    """Whole models to be timed, with their memory."""
    return [
        Point(name, None if name == DENSE else partial(whole_model, sites, plan), memory=True)
        for name, plan in plans.items()
    ]


def _chain_name(block: Block, size: Size) -> str:
    return block_point(block, copies_of(block), *size)


def _block_point(
    sites: Sites, block: Block, copies: int, units: int, tokens: int, span: Span | None = None
) -> Point:
    def build() -> Lowerable:
        piece = piece_of(sites, block, copies, units, tokens, span)
        return piece.module, piece.inputs

    return Point(block_point(block, copies, units, tokens, span), build)


def whole_model(sites: Sites, plan: Plan) -> Lowerable:
    """A plan's model and its inputs at batch 1."""
    slim = apply(sites.program, plan, sites)
    return slim.module, tuple(each[:1].contiguous() for each in slim.example_inputs)

"""Measured costs: pieces lowered as the model will be, timed on the device at sampled sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from edgeprune.cost.blocks import (
    Block,
    block_point,
    copies_of,
    find_blocks,
    kept_units,
    overhead_tokens,
    sizes_of,
)
from edgeprune.cost.fit import fit_table
from edgeprune.cost.plans import DENSE, anchor_plans, selection_plans
from edgeprune.cost.samples import Lowerable, Point, read_samples, samples_file, take_samples
from edgeprune.cost.table import CostTable
from edgeprune.devices.device import Device
from edgeprune.lower.lowering import Lowering
from edgeprune.plan import Plan
from edgeprune.sites import Sites
from edgeprune.surgery import apply
from edgeprune.surgery.pieces import chain


def measure_costs(
    sites: Sites,
    device: Device,
    lowering: Lowering,
    *,
    tokens: Sequence[int] | None = None,
    seed: int = 0,
) -> CostTable:
    """Measure what the model's pieces cost on a device.

    Sub-layers of one kind are timed as a chain of copies with weights of their own, at sampled
    units × tokens; selections as whole programs with and without; a few whole random plans fix
    the scale and the constant part. All timings are ratios to the dense model, run in turns.
    Samples are kept as they come, so a run that was stopped goes on, and a second one with the
    same shapes, lowering, device, versions and code measures nothing.

    Args:
        sites: of the dense program.
        device: open; its threads are the table's.
        tokens: token counts that plans will use, to be sampled exactly; by default an even
            spread.
        seed: of the order of measuring and of the whole-model plans.

    Raises:
        EdgepruneError: a piece cannot be lowered.
    """
    blocks = find_blocks(sites)
    plans = anchor_plans(sites, seed)
    path = samples_file(sites.program, device, lowering)
    known = read_samples(path)
    points = list(sample_points(sites, blocks, plans, tokens))
    np.random.default_rng(seed).shuffle(points)  # type: ignore[arg-type]
    samples = take_samples(sites.program, device, lowering, points, path, known)
    samples = {point.name: samples[point.name] for point in points}
    table = fit_table(sites, blocks, plans, samples, lowering)
    state = device.state()
    return replace(
        table,
        device=f"{device.name}: {state.cpu_model}",
        versions=state.versions,
        threads=state.threads,
    )


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
            if block.residuals[0].closing_norms:
                yield _block_point(sites, block, copies, 0, count)
    for name, plan in selection_plans(sites).items():
        yield Point(name, partial(_whole, sites, plan))
    for name, plan in plans.items():
        yield Point(name, None if name == DENSE else partial(_whole, sites, plan), memory=True)


def _block_point(sites: Sites, block: Block, copies: int, units: int, tokens: int) -> Point:
    name = block_point(block, copies, units, tokens)
    kept = kept_units(sites, block, copies, units) if units else {}
    residuals = block.residuals[:copies]

    def build() -> Lowerable:
        piece = chain(sites, residuals, kept, tokens, removed=not units)
        return piece.module, piece.inputs

    return Point(name, build)


def _whole(sites: Sites, plan: Plan) -> Lowerable:
    slim = apply(sites.program, plan, sites)
    return slim.module, tuple(each[:1].contiguous() for each in slim.example_inputs)

"""From samples to a table: overhead off, lines and corrections, selections, scale and constant."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from edgeprune.cost.blocks import (
    COARSE_TOKENS,
    COARSE_UNITS,
    Block,
    Span,
    block_point,
    copies_of,
    elements,
    overhead_tokens,
    sizes_of,
    spans_of,
    token_levels,
    unit_levels,
)
from edgeprune.cost.memory import (
    MB,
    USUAL_SHARE,
    block_weights_mb,
    fit_memory,
    spanned_share,
    tensor_bytes,
)
from edgeprune.cost.plans import selection_name, selections
from edgeprune.cost.samples import Samples
from edgeprune.cost.table import (
    BlockCost,
    CostTable,
    Grid,
    Line,
    Shares,
    Transition,
    line_at,
    transition_terms,
)
from edgeprune.lower.lowering import Lowering, Precision
from edgeprune.plan import Plan
from edgeprune.sites import Sites


@dataclass(frozen=True)
class Sampled:
    """What one block takes by size, the chain's overhead taken off.

    Attributes:
        ms: (units, tokens) -> of one copy.
        removed_ms: over tokens.
        working_set_mb: (units, tokens) -> tensors alive at once.
        spanned: spanning site cut, all else whole -> milliseconds, and the working set.
    """

    ms: dict[tuple[int, int], float]
    removed_ms: Line
    working_set_mb: dict[tuple[int, int], float]
    spanned: dict[Span, tuple[float, float]]


def fit_table(
    sites: Sites,
    blocks: Sequence[Block],
    plans: Mapping[str, Plan],
    samples: Samples,
    lowering: Lowering,
) -> CostTable:
    """The table that the samples make; device, versions and threads are left to be filled in.

    Args:
        plans: point name -> whole-model plan, to which scale and constant are fitted.
    """
    dense_ms = statistics.median(ms for sample in samples.values() for ms in sample.dense_ms)
    overhead = _overhead(blocks, samples, dense_ms)
    sampled = [_sampled(sites, block, samples, dense_ms, overhead) for block in blocks]
    costs = tuple(
        block_cost(sites, block, found, lowering.precision)
        for block, found in zip(blocks, sampled, strict=True)
    )
    inside = sum(cost.weight_mb * len(cost.members) for cost in costs)
    weights = sum(tensor_bytes(sites, lowering.precision).values()) / MB
    table = CostTable(
        device="",
        runtime=lowering.runtime,
        delegate=lowering.delegate,
        versions={},
        precision=lowering.precision,
        threads=1,
        date=max(sample.date for sample in samples.values()),
        program=sites.program.fingerprint,
        provenance="measured",
        dense_ms=dense_ms,
        blocks=costs,
        transition=None,
        scale=1.0,
        fixed_ms=0.0,
        fixed_weight_mb=weights - inside,
        fixed_activation_mb=0.0,
        selection_mb=0.0,
        samples={name: vars(sample) for name, sample in samples.items()},
    )
    table = replace(table, transition=_transition(sites, table, samples))
    table = _with_scale(sites, table, plans, samples)
    table = with_memory(sites, table, plans, samples)
    return replace(table, error_pct=table.error_pct | _left_out_pct(costs))


def block_cost(sites: Sites, block: Block, sampled: Sampled, precision: Precision) -> BlockCost:
    """One kind of part as it stands in the table."""
    sizes = tensor_bytes(sites, precision)
    total, fixed, removed = block_weights_mb(sites, block, sizes)
    return BlockCost(
        members=tuple(part.name for part in block.parts),
        ms=_grid(block, sampled.ms),
        removed_ms=sampled.removed_ms,
        activation_mb=_grid(block, _scaled(sampled.working_set_mb, USUAL_SHARE)),
        weight_mb=total,
        fixed_weight_mb=fixed,
        removed_weight_mb=removed,
        spanned=tuple(
            _shares(sites, block, sampled, place, spanned_share(sites, block, sizes, name))
            for place, name in enumerate(block.parts[0].spanning)
        ),
    )


def _shares(sites: Sites, block: Block, sampled: Sampled, place: int, carried: float) -> Shares:
    """What is left of a block over the units of one spanning site.

    Args:
        carried: the share of its bytes that these units carry.
    """
    whole = (block.units, block.tokens)
    full = (sampled.ms[whole], sampled.working_set_mb[whole])
    units = float(sites.get(block.parts[0].spanning[place]).units)
    rows = [
        (float(kept), *(now / all_ if all_ else 1.0 for now, all_ in zip(got, full, strict=True)))
        for (at, kept), got in sorted(sampled.spanned.items())
        if at == place
    ]
    return Shares(
        ms=(*((kept, min(ms, 1.0)) for kept, ms, _ in rows), (units, 1.0)),
        activation_mb=(*((kept, min(mb, 1.0)) for kept, _, mb in rows), (units, 1.0)),
        weight_mb=((0.0, 1.0 - carried), (units, 1.0)),
    )


def _grid(block: Block, values: Mapping[tuple[int, int], float]) -> Grid:
    inner = {
        (units, tokens)
        for units in unit_levels(block, COARSE_UNITS)
        for tokens in token_levels(block, COARSE_TOKENS)
        if units < block.units and tokens < block.tokens
    }
    return Grid(
        tuple((u, v) for (u, t), v in sorted(values.items()) if t == block.tokens),
        tuple((t, v) for (u, t), v in sorted(values.items()) if u == block.units),
        tuple((*size, values[size]) for size in sorted(inner) if size in values),
    )


def _overhead(blocks: Sequence[Block], samples: Samples, dense_ms: float) -> Line:
    """Over elements of the stream: what a chain takes besides its copies, at least 0.

    Entering the runtime and copying the input and output: a constant and a part that grows.
    """
    found = []
    for block in blocks:
        copies = copies_of(block)
        for tokens in overhead_tokens(block) if copies > 1 else ():
            one, many = (
                samples[block_point(block, n, block.units, tokens)].ratio * dense_ms
                for n in (1, copies)
            )
            found.append((tokens * block.width, one - (many - one) / (copies - 1)))
    if not found:
        return ((0.0, 0.0),)
    rows = np.array([[1.0, size] for size, _ in found])
    (constant, slope), _ = nnls(rows, np.array([max(ms, 0.0) for _, ms in found]))
    return ((0.0, float(constant)), (1.0, float(constant + slope)))


def _sampled(
    sites: Sites, block: Block, samples: Samples, dense_ms: float, overhead: Line
) -> Sampled:
    copies = copies_of(block)

    def one_ms(units: int, tokens: int, span: Span | None = None) -> float:
        chain_ms = samples[block_point(block, copies, units, tokens, span)].ratio * dense_ms
        moved = tokens * block.width * (1.0 if span is None else _moved(sites, block, span))
        return float(max(chain_ms - line_at(overhead, moved), 0.0) / copies)

    every = sizes_of(block, _sampled_tokens(block, samples))
    sizes = [size for size in every if block_point(block, copies, *size) in samples]
    alive = {s: samples[block_point(block, copies, *s)].working_set_bytes / MB for s in sizes}
    closing = [t for t in overhead_tokens(block) if block_point(block, copies, 0, t) in samples]
    removed = tuple((float(t), one_ms(0, t)) for t in closing)
    spanned = {
        span: (
            one_ms(block.units, block.tokens, span),
            samples[block_point(block, copies, block.units, block.tokens, span)].working_set_bytes
            / MB,
        )
        for span in spans_of(sites, block)
    }
    ms = {size: one_ms(*size) for size in sizes}
    return Sampled(ms, removed or ((1.0, 0.0),), alive, spanned)


def _moved(sites: Sites, block: Block, span: Span) -> float:
    """The share of what goes in and out that is left with a spanning site cut."""
    part, (place, units) = block.parts[0], span
    return elements(sites, part, {part.spanning[place]: units}) / elements(sites, part, {})


def _sampled_tokens(block: Block, samples: Samples) -> list[int]:
    """Token counts at which the whole block was sampled."""
    counts = range(1, block.tokens + 1) if block.shrinks else ()
    copies = copies_of(block)
    return [t for t in counts if block_point(block, copies, block.units, t) in samples]


def _transition(sites: Sites, table: CostTable, samples: Samples) -> Transition | None:
    """Fit selections to programs with them against the same without."""
    rows, found = [], []
    for choice in selections(sites):
        with_, without = (
            samples[selection_name(choice.size, choice.before, last)].ratio * table.dense_ms
            for last in (choice.keep, choice.before)
        )
        later = [each.name for each in sites.residuals]
        later = later[later.index(choice.streams[-1].residual.name) + 1 :]
        saved = sum(
            table.block_ms(name, 0, choice.before) - table.block_ms(name, 0, choice.keep)
            for name in later
        )
        rows.append(transition_terms(choice.size, choice.before, choice.keep))
        found.append(max(with_ - without + saved, 0.0))
    if not rows:
        return None
    factors, _ = nnls(np.array(rows), np.array(found))
    size = selections(sites)[0].size
    a, b, c, d, e = (float(factor) for factor in factors)
    return Transition(size, (a, b, c, d, e))


def _with_scale(
    sites: Sites, table: CostTable, plans: Mapping[str, Plan], samples: Samples
) -> CostTable:
    """Scale and constant that bring the sums closest to the whole models, in relative terms."""
    pieces = np.array([table.predict(sites, plan).latency_ms for plan in plans.values()])
    whole = np.array([samples[name].ratio * table.dense_ms for name in plans])
    rows = np.stack([pieces, np.ones(len(pieces))], axis=1) / whole[:, None]
    (scale, fixed), _ = nnls(rows, np.ones(len(pieces)))
    off = 100 * np.abs((scale * pieces + fixed) / whole - 1)
    errors = {"anchors_mean": float(off.mean()), "anchors_worst": float(off.max())}
    return replace(table, scale=float(scale), fixed_ms=float(fixed), error_pct=errors)


def with_memory(
    sites: Sites, table: CostTable, plans: Mapping[str, Plan], samples: Samples
) -> CostTable:
    """The file's constant part, what the process holds beside it, or what it leaves out."""
    sizes = {name: samples[name].size_bytes / MB for name in plans}
    extra = [size - table.predict(sites, plans[name]).size_mb for name, size in sizes.items()]
    weights = max(table.fixed_weight_mb + statistics.mean(extra), 0.0)
    table = replace(table, fixed_weight_mb=weights)
    guesses = [table.predict(sites, plan) for plan in plans.values()]
    beside = [
        (samples[name].peak_memory_mb or 0.0) - guess.size_mb
        for name, guess in zip(plans, guesses, strict=True)
    ]
    alive = [(guess.peak_memory_mb - guess.size_mb) / USUAL_SHARE for guess in guesses]
    constant, more = fit_memory(beside, alive, [bool(plan.tokens) for plan in plans.values()])
    table = replace(table, fixed_activation_mb=constant, selection_mb=more)
    if constant:
        return table
    predicted = [table.predict(sites, plan).peak_memory_mb for plan in plans.values()]
    resident, offset = np.polyfit(
        predicted, [samples[name].peak_memory_mb or 0.0 for name in plans], 1
    )
    if not 0.5 < resident < 4:  # sizes that hardly differ tell nothing
        return table
    return replace(table, resident=float(resident), unread_mb=max(float(-offset / resident), 0.0))


def _scaled(values: Mapping[tuple[int, int], float], by: float) -> dict[tuple[int, int], float]:
    return {size: by * value for size, value in values.items()}


def _left_out_pct(blocks: Sequence[BlockCost]) -> dict[str, float]:
    """How far interpolation misses samples that it was not given, in percent of the whole block.

    Neighbours are twice as far apart as in the table, so its own error is smaller.
    """
    missed: list[float] = []
    for block in blocks:
        grid = block.ms
        whole = grid.by_units[-1][1]
        for line in (grid.by_units, grid.by_tokens):
            for place in range(1, len(line) - 1):
                left_out = (*line[:place], *line[place + 1 :])
                missed.append((line_at(left_out, line[place][0]) - line[place][1]) / whole)
        for units, tokens, value in grid.inside:
            rest = tuple(each for each in grid.inside if each[:2] != (units, tokens))
            missed.append((replace(grid, inside=rest).at(units, tokens) - value) / whole)
    if not missed:
        return {}
    off = 100 * np.abs(missed)
    return {"left_out_mean": float(off.mean()), "left_out_worst": float(off.max())}

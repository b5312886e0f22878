"""One device's table for another: every part of it by a factor, from a dozen whole models."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import nnls

from edgeprune import console
from edgeprune.cost import shelf
from edgeprune.cost.blocks import find_blocks
from edgeprune.cost.fit import with_memory
from edgeprune.cost.measure import anchor_points, made_on
from edgeprune.cost.plans import RESCALING_SHARES, anchor_plans
from edgeprune.cost.samples import Sampler, Samples, samples_file
from edgeprune.cost.shelf import changes, concerns, described
from edgeprune.cost.table import BlockCost, CostTable, Grid, Line, walk
from edgeprune.devices.device import Device
from edgeprune.errors import InputError
from edgeprune.lower.lowering import Lowering
from edgeprune.plan import Plan
from edgeprune.sites import Sites

log = logging.getLogger(__name__)

# A table fits whole models to about 2%; how far a part's factor lies from the common one nobody
# knows before. With a fifth instead of half, factors of 2, 3 and 5 were missed by 12% at worst
# instead of 3%; with one instead of half, noise of 5% counts for more.
NOISE, APART = 0.02, 0.5


def adapt(
    table: CostTable, sites: Sites, lowering: Lowering, device: Device | None, seed: int = 0
) -> CostTable:
    """The table as it is where it holds, else rescaled on the device at hand; says which, and why.

    Raises:
        InputError: it was made for another model, runtime, delegate or precision.
        EdgepruneError: the device failed.
    """
    check_made_for(table, sites, lowering)
    console.say(f"  table {described(table)}")
    for concern in concerns(table):
        log.warning("table of %s: %s", table.device, concern)
    changed = [] if device is None else changes(table, device.state())
    if device is None or not changed:
        return table
    console.say(f"  {'; '.join(changed)}: rescaling it by whole models measured here")
    found = rescale_costs(table, sites, device, lowering, seed)
    console.say(
        f"  rescaled by {len(found.samples)} measurements: a whole model that it was not given "
        f"is {found.error_pct['rescaled_mean']:.1f}% off on average, "
        f"{found.error_pct['rescaled_worst']:.1f}% at worst"
    )
    return found


def rescale_costs(
    table: CostTable, sites: Sites, device: Device, lowering: Lowering, seed: int = 0
) -> CostTable:
    """The table for another device, runtime version or number of threads.

    A dozen whole models are timed on the device. Every kind of sub-layer, the selections and the
    rest get a factor each, pulled towards their common one; the error stated is of each model
    when the factors are found without it.

    Args:
        table: of the same model, lowered the same way.
        device: the one to rescale to.

    Raises:
        InputError: the table was made for another model or lowering.
        EdgepruneError: the device failed; what it measured is kept.
    """
    check_made_for(table, sites, lowering)
    plans = anchor_plans(sites, seed, RESCALING_SHARES)
    path = samples_file(sites.program, device, lowering)
    with Sampler(sites.program, device, lowering, path, plans) as sampler:
        sampler.take(anchor_points(sites, plans))
    found = made_on(rescaled(table, sites, plans, sampler.taken), device)
    shelf.keep(found)
    return found


def rescaled(
    table: CostTable, sites: Sites, plans: Mapping[str, Plan], samples: Samples
) -> CostTable:
    """The table that whole models measured elsewhere make of another; pure arithmetic.

    Args:
        plans: by the names of their samples.
    """
    dense_ms = statistics.median(ms for sample in samples.values() for ms in sample.dense_ms)
    parts = np.array([_parts(table, sites, plan) for plan in plans.values()])
    whole = np.array([samples[name].ratio * dense_ms for name in plans])
    *blocks, selections, rest = _factors(parts, whole)
    off = [  # of each, by what the others say
        100 * abs(parts[i] @ _factors(np.delete(parts, i, 0), np.delete(whole, i)) / float(ms) - 1)
        for i, ms in enumerate(whole)
    ]
    moved = table.transition
    found = replace(
        table,
        provenance="rescaled",
        source=table.source or f"{table.device}, {table.date}",
        date=max(sample.date for sample in samples.values()),
        program=sites.program.fingerprint,
        dense_ms=dense_ms,
        blocks=tuple(
            replace(block, ms=_times(block.ms, by), removed_ms=_line(block.removed_ms, by))
            for block, by in zip(table.blocks, blocks, strict=True)
        ),
        transition=moved and replace(moved, factors=tuple(selections * f for f in moved.factors)),
        fixed_ms=rest * table.fixed_ms,
        fixed_activation_mb=0.0,
        selection_mb=0.0,
        unread_mb=0.0,
        resident=1.0,
        error_pct=table.error_pct
        | {"rescaled_mean": statistics.fmean(off), "rescaled_worst": float(max(off))},
        samples={name: vars(sample) for name, sample in samples.items()},
    )
    return with_memory(sites, found, plans, samples)


def check_made_for(table: CostTable, sites: Sites, lowering: Lowering) -> None:
    """Refuse a table that says nothing about this model, lowered this way.

    Raises:
        InputError: says what differs.
    """
    for what in ("runtime", "delegate", "precision"):
        got, wanted = getattr(table, what), getattr(lowering, what)
        if got != wanted:
            raise InputError(
                f"table of {table.device}: its {what} is {got}, this build's is {wanted}. "
                f"Give --{what} {got}, or another table."
            )
    priced = {name: _sizes(block) for block in table.blocks for name in block.members}
    for block in find_blocks(sites):
        for part in block.parts:
            got = priced.get(part.name, "nothing")
            wanted = _said(block.units, block.tokens, [sites.get(n).units for n in part.spanning])
            if got != wanted:
                raise InputError(
                    f"table of {table.device}: made for another model: '{part.name}' has {got} "
                    f"there, {wanted} here. Leave --table out to measure one."
                )


def _sizes(block: BlockCost) -> str:
    return _said(block.units, block.tokens, [shares.ms[-1][0] for shares in block.spanned])


def _said(units: float, tokens: float, spanning: Sequence[float]) -> str:
    more = f", spanned by {' x '.join(f'{each:g}' for each in spanning)}" if spanning else ""
    return f"{units:g} units and {tokens:g} tokens{more}"


def _parts(table: CostTable, sites: Sites, plan: Plan) -> list[float]:
    """Predicted milliseconds: of each block, of the selections, of the rest."""
    places = {name: place for place, each in enumerate(table.blocks) for name in each.members}
    found = [0.0] * len(table.blocks) + [0.0, table.fixed_ms]
    for part, units, tokens, keep in walk(plan, sites):
        if part.residual is None or part.residual.layer not in plan.kept:
            whole = table.block_ms(part.name, units, tokens)
            found[places[part.name]] += whole * float(table.spanned(part, plan)[0])
        found[-2] += table.transition_ms(tokens, keep)
    return found


def _factors(parts: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Of every part, at least 0: least squares in relative terms, each pulled to the common one."""
    common = float(np.median(whole / parts.sum(1)))
    pull = NOISE / APART * np.eye(parts.shape[1])
    rows = np.vstack([common * parts / whole[:, None], pull])
    factors, _ = nnls(rows, np.concatenate([np.ones(len(whole)), np.diag(pull)]))
    return np.asarray(common * factors)


def _times(grid: Grid, by: float) -> Grid:
    inside = tuple((units, tokens, by * value) for units, tokens, value in grid.inside)
    return Grid(_line(grid.by_units, by), _line(grid.by_tokens, by), inside)


def _line(line: Line, by: float) -> Line:
    return tuple((x, by * y) for x, y in line)

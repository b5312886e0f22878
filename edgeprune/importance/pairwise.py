"""pairwise: which units can go together (Peng et al. 2019, "Collaborative channel pruning").

Removing a set of units moves the outputs by about r^T H r, r = 1 for those removed. The paper's
Hessian of the loss is approximated by first-order gradients; here H is the Gauss-Newton matrix of
the outputs' movement by the units' gates, from random projections, so that no labels are needed.
Two units whose effects cancel are cheaper together than apart, two that say the same dearer. The
ranking is greedy; :func:`best_subset` solves the paper's 0-1 quadratic choice for one number.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import DRAWS, Evidence, float_outputs
from edgeprune.importance.units import steps
from edgeprune.sites import Site

MOST_SUBSETS = 20_000
"""So many are tried one by one; beyond that the choice is greedy, from several starts."""

STARTS = 64


@criterion("pairwise", needs="gradients", across_layers=False)
def pairwise(evidence: Evidence, site: Site) -> Tensor:
    """The step at which greedy removal takes each unit: [units]."""
    return steps(order_by_pairs(gauss_newton(evidence, site)))


def gauss_newton(evidence: Evidence, site: Site) -> Tensor:
    """Second derivatives of half the outputs' movement by the site's gates: [units, units]."""
    rows = evidence.once(_gate_gradient_rows)[site.name].double()
    return rows.T @ rows / DRAWS


def best_subset(pairs: Tensor, keep: int) -> tuple[int, ...]:
    """The ``keep`` units whose complement r has the least r^T ``pairs`` r: a 0-1 quadratic choice.

    Exact where there are few subsets, else the best of greedy choices that begin with another unit.

    Args:
        pairs: symmetric, [units, units].
        keep: how many stay, 1 to units.
    """
    units = len(pairs)
    if math.comb(units, keep) <= MOST_SUBSETS:
        gone = torch.tensor(list(itertools.combinations(range(units), units - keep)))
        indicator = torch.zeros(len(gone), units, dtype=pairs.dtype).scatter_(1, gone.long(), 1.0)
        costs = torch.einsum("ni,ij,nj->n", indicator, pairs, indicator)
        return tuple((indicator[costs.argmin()] == 0).nonzero()[:, 0].tolist())
    starts = order_by_pairs(pairs)[:STARTS]
    orders = [order_by_pairs(pairs, units - keep, first) for first in starts if keep < units]
    prices = [float(pairs[order][:, order].sum()) for order in orders]
    removed = set(orders[prices.index(min(prices))] if orders else [])
    return tuple(unit for unit in range(units) if unit not in removed)


def order_by_pairs(pairs: Tensor, count: int | None = None, first: int | None = None) -> list[int]:
    """Units in the order in which they go: each step takes the unit or pair cheapest per unit.

    Args:
        pairs: symmetric, [units, units].
        count: how many go; None: all.
        first: the one that goes first; None: as any other.
    """
    count = len(pairs) if count is None else count
    growth = pairs.diagonal().clone()
    order: list[int] = []

    def remove(unit: int) -> None:
        order.append(unit)
        growth.add_(2 * pairs[unit])
        growth[unit] = math.inf

    if first is not None:
        remove(first)
    while len(order) < count:
        both = (growth[:, None] + growth) / 2 + pairs
        both.diagonal().copy_(growth)  # a unit alone
        if len(order) == count - 1:
            both = both.diag().diag_embed().where(torch.eye(len(pairs)) > 0, math.inf)
        one, two = divmod(int(both.argmin()), len(pairs))
        for unit in sorted({one, two}, key=lambda each: float(growth[each])):
            remove(unit)
    return order


def _gate_gradient_rows(evidence: Evidence) -> dict[str, Tensor]:
    """Site -> gradients of projected outputs by its gates, one row per example and draw."""
    generator = torch.Generator().manual_seed(evidence.seed)
    gates = evidence.gated.gates
    rows: dict[str, list[Tensor]] = {name: [] for name in gates}
    for batch in evidence.batches:
        for example in range(len(batch[0])):
            with torch.enable_grad():
                one = tuple(x[example : example + 1] for x in batch)
                found = float_outputs(evidence.gated(*one))
                outputs = [o / s**0.5 for o, s in zip(found, evidence.spread, strict=True)]
            for draw in range(DRAWS):
                signs = [
                    torch.randint(0, 2, each.shape, generator=generator) * 2.0 - 1
                    for each in outputs
                ]
                gradients = torch.autograd.grad(
                    outputs, list(gates.values()), signs, retain_graph=draw < DRAWS - 1
                )
                for name, gradient in zip(rows, gradients, strict=True):
                    rows[name].append(gradient)
    return {name: torch.stack(found) for name, found in rows.items()}

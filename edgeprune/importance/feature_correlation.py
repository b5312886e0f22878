"""feature_correlation: maps that vary, and of those alike one (FSS, few-shot slimming).

Two maps are alike by the absolute normalised cross-correlation of one image's, averaged over
images, so a few without labels do. Greedy: of the two most alike maps the one of less variance
goes, then the next pair is sought. Maps that hardly vary say nothing and go before all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import has_values, steps, unit_values
from edgeprune.sites import Site

NEGLIGIBLE = 1e-6
"""Variance, relative to the mean one, below which a map says nothing."""


def _has_maps(evidence: Evidence, site: Site) -> bool:
    if not evidence.batches or not has_values(evidence, site):
        return False
    return next(unit_values(evidence, site))[0][0, 0].numel() > 1


@criterion(
    "feature_correlation",
    needs="data",
    across_layers=False,
    where="all with several values per example",
    applies=_has_maps,
)
def feature_correlation(evidence: Evidence, site: Site) -> Tensor:
    """The step at which greedy removal takes each unit: [units]."""
    likeness, variance = map_likeness(evidence, site)
    return steps(parting_order(likeness, variance))


def map_likeness(evidence: Evidence, site: Site) -> tuple[Tensor, Tensor]:
    """Mean |cross-correlation| of every two maps, [units, units], and their variance, [units]."""
    likeness = torch.zeros(site.units, site.units, dtype=torch.float64)
    variance = torch.zeros(site.units, dtype=torch.float64)
    count = 0
    for batch in unit_values(evidence, site):
        for values in batch:
            maps = values.flatten(2).double()
            maps = maps - maps.mean(2, keepdim=True)
            variance += maps.square().mean(2).sum(0)
            unit = torch.nn.functional.normalize(maps, dim=2)
            likeness += (unit @ unit.transpose(1, 2)).abs().sum(0)
            count += len(maps)
    return likeness / count, variance / count


def parting_order(likeness: Tensor, variance: Tensor) -> list[int]:
    """Units in the order in which they go: flat ones, then of each most alike pair the flatter."""
    flat = variance <= NEGLIGIBLE * variance.mean()
    order: list[int] = torch.where(flat)[0].tolist()
    alike = likeness.clone().fill_diagonal_(-1.0)
    alike[order], alike[:, order] = -1.0, -1.0
    while len(order) < len(alike):
        pair = divmod(int(alike.argmax()), len(alike))
        left = [unit for unit in range(len(alike)) if unit not in order]
        gone = min(pair, key=lambda unit: float(variance[unit])) if len(left) > 1 else left[0]
        order.append(gone)
        alike[gone], alike[:, gone] = -1.0, -1.0
    return order

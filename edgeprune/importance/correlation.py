"""correlation: how little a unit's values follow another's (Wang et al. 2019, "COP").

Applied greedily: of the two most correlated units the one that follows the others more goes, then
the next pair is sought, so that of several equal units one stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import has_values, redundancy_order, steps, unit_values
from edgeprune.sites import Site


@criterion(
    "correlation",
    needs="data",
    across_layers=False,
    where="all with a reader",
    applies=has_values,
)
def correlation(evidence: Evidence, site: Site) -> Tensor:
    """The step at which greedy removal takes each unit: [units]."""
    return steps(redundancy_order(correlations(evidence, site).abs()))


def correlations(evidence: Evidence, site: Site) -> Tensor:
    """Pearson's, of every two units' values over examples, places and width: [units, units]."""
    products = torch.zeros(site.units, site.units, dtype=torch.float64)
    sums = torch.zeros(site.units, dtype=torch.float64)
    count = 0
    for batch in unit_values(evidence, site):
        for values in batch:
            rows = values.double().transpose(0, 1).flatten(1)
            products += rows @ rows.T
            sums += rows.sum(1)
            count += rows.shape[1]
    covariance = products - torch.outer(sums, sums) / count
    deviation = covariance.diagonal().clamp(min=1e-12 * float(products.diagonal().max())).sqrt()
    return covariance / torch.outer(deviation, deviation)

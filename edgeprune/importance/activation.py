"""activation: the mean absolute value of a unit (Molchanov et al. 2017, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import has_values, unit_values
from edgeprune.sites import Site


@criterion(
    "activation", needs="data", across_layers=False, where="all with a reader", applies=has_values
)
def activation(evidence: Evidence, site: Site) -> Tensor:
    """Mean of |value| at its readers' inputs, over examples, places and width: [units]."""
    total, count = torch.zeros(site.units), 0
    for batch in unit_values(evidence, site):
        for values in batch:
            total += values.abs().sum((0, 2, 3))
            count += values[:, 0].numel()
    return total / count

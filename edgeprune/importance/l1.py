"""l1: the mean absolute weight of a unit (Li et al., "Pruning filters for efficient ConvNets")."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.sites import Site
from edgeprune.sites.atoms import unit_numbers


@criterion("l1", needs="weights", across_layers=False)
def l1(evidence: Evidence, site: Site) -> Tensor:
    """Mean of |w| over all weights that leave with the unit: [units]."""
    sites = evidence.sites
    atom = sites.atoms[site.name]
    total = torch.zeros(site.units, dtype=torch.float64)
    count = torch.zeros(site.units, dtype=torch.float64)
    for path, axis in site.weights:
        tensor = sites.program.tensors[path].detach().double().abs()
        rows = tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)
        numbers = torch.tensor(unit_numbers(sites.flow.tensors[path][axis], atom))
        inside = numbers >= 0
        total.index_add_(0, numbers[inside], rows[inside].sum(1))
        count.index_add_(
            0,
            numbers[inside],
            torch.full((int(inside.sum()),), float(rows.shape[1]), dtype=torch.float64),
        )
    return total / count

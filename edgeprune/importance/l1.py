"""l1: the mean absolute weight of a unit (Li et al. 2017, "Pruning filters")."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import weight_rows
from edgeprune.sites import Site


@criterion("l1", needs="weights", across_layers=False)
def l1(evidence: Evidence, site: Site) -> Tensor:
    """Mean of |w| over all weights that leave with the unit: [units]."""
    rows = torch.cat([rows for _, rows in weight_rows(evidence.sites, site)], dim=1)
    return rows.abs().mean(1)

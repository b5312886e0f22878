"""l2: the root mean square weight of a unit (He et al. 2018, "Soft filter pruning")."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import weight_rows
from edgeprune.sites import Site


@criterion("l2", needs="weights", across_layers=False)
def l2(evidence: Evidence, site: Site) -> Tensor:
    """Root of the mean of w² over all weights that leave with the unit: [units]."""
    rows = torch.cat([rows for _, rows in weight_rows(evidence.sites, site)], dim=1)
    return rows.square().mean(1).sqrt()

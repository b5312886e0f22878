"""fpgm: how far a unit's weights are from the others' (He et al. 2019, "geometric median").

The paper removes the filters nearest the geometric median all at once, because the others can
stand for them; of two equal filters it may take both. Here the closest pair is parted, one step
after the other, and the one nearer the geometric median of what is left goes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import own_rows, redundancy_order, steps
from edgeprune.sites import Site


@criterion(
    "fpgm",
    needs="weights",
    across_layers=False,
    where="all with weights of their own",
    applies=lambda evidence, site: any(own_rows(evidence.sites, site)),
)
def fpgm(evidence: Evidence, site: Site) -> Tensor:
    """The step at which greedy removal takes each unit: [units]."""
    rows = torch.cat([rows for _, rows in own_rows(evidence.sites, site)], dim=1)
    return steps(redundancy_order(-torch.cdist(rows, rows)))

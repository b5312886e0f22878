"""bn_scale: the size of a channel's batch-norm scale (Liu et al. 2017, "Network slimming").

The paper drives the scales to zero by an L1 penalty in training and then compares all layers;
without that training they compare within a layer only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import weight_rows
from edgeprune.program.graph import ATEN, calls
from edgeprune.sites import Site


def _scales(evidence: Evidence, site: Site) -> list[Tensor]:
    """[units, width] of each batch norm that scales the units."""
    scales = {
        str(node.args[1].target)
        for node in calls(evidence.sites.program.module.graph, ATEN.batch_norm)
        if node.args[1] is not None
    }
    return [rows for path, rows in weight_rows(evidence.sites, site) if path in scales]


@criterion(
    "bn_scale",
    needs="weights",
    across_layers=False,
    where="channels with a batch norm",
    applies=lambda evidence, site: bool(_scales(evidence, site)),
)
def bn_scale(evidence: Evidence, site: Site) -> Tensor:
    """Mean of |scale| over the batch norms that the channel passes: [units]."""
    return torch.cat(_scales(evidence, site), dim=1).abs().mean(1)

"""next_layer_recon: what the next layer loses without a unit (Luo et al. 2017, "ThiNet").

Greedy, as in the paper: each step takes the unit that, with all gone before it, changes the sums
that the next layer computes the least. The paper looks at a few places; here all count.
"""

from __future__ import annotations

import math

from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import matrices, read_by_matrices, steps
from edgeprune.sites import Site


@criterion(
    "next_layer_recon",
    needs="data",
    across_layers=False,
    where="all that linear layers and convolutions read",
    applies=read_by_matrices,
)
def next_layer_recon(evidence: Evidence, site: Site) -> Tensor:
    """The step at which greedy removal takes each unit: [units]."""
    moments = sum(matrix.moments(site.units) for matrix in matrices(evidence, site))
    assert isinstance(moments, Tensor)
    return steps(removal_order(moments))


def removal_order(moments: Tensor) -> list[int]:
    """Units in the order that keeps the squared sum of the removed ones' parts smallest.

    Args:
        moments: <part u, part v> of what the units add to the output, [units, units].
    """
    growth = moments.diagonal().clone()
    order: list[int] = []
    for _ in range(len(moments)):
        gone = int(growth.argmin())
        order.append(gone)
        growth += 2 * moments[gone]
        growth[gone] = math.inf
    return order

"""lasso: which channels a sparse combination needs (He et al. 2017, "Channel pruning").

The next layer's output is to be the sum of what the units add to it, each times a factor; an L1
penalty on the factors lets them go to zero one after the other as it grows. The least squares that
the paper alternates with is recovery's, once the units are chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import matrices, read_by_matrices
from edgeprune.sites import Site

PENALTIES = 60
STEPS = 60
RANGE = 1e-4
"""The smallest penalty, relative to the one that lets every factor be zero."""


@criterion(
    "lasso",
    needs="data",
    across_layers=False,
    where="all that linear layers and convolutions read",
    applies=read_by_matrices,
)
def lasso(evidence: Evidence, site: Site) -> Tensor:
    """How many of the penalties, from large to small, leave the unit a factor: [units]."""
    moments = sum(matrix.moments(site.units) for matrix in matrices(evidence, site))
    assert isinstance(moments, Tensor)
    return survivals(moments)


def survivals(moments: Tensor) -> Tensor:
    """Of falling penalties, how many leave each unit a factor, plus its share of all: [units].

    Args:
        moments: <part u, part v> of what the units add to the output, [units, units].
    """
    found = torch.zeros(len(moments), dtype=torch.float64)
    factors = torch.zeros_like(found)
    wanted = moments.sum(1)
    for power in torch.linspace(0, 1, PENALTIES + 1)[1:].tolist():
        penalty = float(wanted.abs().max()) * RANGE**power
        factors = minimised(moments, wanted, penalty, factors)
        found += factors.abs() > 0
    return found + factors.abs() / factors.abs().sum().clamp(min=1e-30) / 2


def minimised(moments: Tensor, wanted: Tensor, penalty: float, start: Tensor) -> Tensor:
    """Factors b of least b^T M b / 2 - b^T wanted + penalty |b|_1: [units] (FISTA).

    Args:
        moments: M, [units, units].
        wanted: <part u, whole output>, [units].
        penalty: at least 0.
        start: where to begin.
    """
    slope = float(torch.linalg.eigvalsh(moments)[-1])
    factors, ahead, momentum = start, start, 1.0
    for _ in range(STEPS):
        step = ahead - (moments @ ahead - wanted) / slope
        following = step.sign() * (step.abs() - penalty / slope).clamp(min=0)
        later = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = following + (momentum - 1) / later * (following - factors)
        factors, momentum = following, later
    return factors

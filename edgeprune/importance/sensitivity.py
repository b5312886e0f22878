"""sensitivity: the largest share a unit ever has in what it is read for (Liebenwein 2020, "PFP").

"Provable filter pruning for efficient neural networks" (arXiv 1911.07412). With p the
sensitivities over their sum S, m units drawn with probability p and weighed by 1 / (m p) give
every output to within epsilon of the sum of its parts' absolute values, on the data seen, with
probability 1 - delta, if m >= S (2 + 4/3 epsilon) log(2 outputs / delta) / epsilon² (Bernstein:
a drawn part is at most S times that sum). The paper takes parts of one sign, in turns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.readers import Reader
from edgeprune.sites import Site

MOST_ROWS = 256
"""Of a batch: each costs outputs x columns."""


@criterion(
    "sensitivity",
    needs="data",
    across_layers=False,
    where="all that one matrix of its own reads",
    applies=lambda evidence, site: site.name in evidence.readers,
)
def sensitivity(evidence: Evidence, site: Site) -> Tensor:
    """Largest |part| / sum of |parts| over rows and outputs: [units], each at most 1."""
    reader = evidence.readers[site.name]
    weight = evidence.sites.program.tensors[reader.weight]
    found = torch.zeros(site.units)
    for (x,) in evidence.values([reader.source]):
        found = torch.maximum(found, shares(reader, weight, reader.features(x), site.units))
    return found


def shares(reader: Reader, weight: Tensor, rows: Tensor, units: int) -> Tensor:
    """The largest share of each unit in any output of some rows: [units]."""
    every = torch.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).long()
    parts = reader.parts(weight, rows[every], units).abs()
    return (parts / parts.sum(2, keepdim=True).clamp(min=1e-30)).amax((0, 1))


def draws_for(sensitivities: Tensor, outputs: int, epsilon: float, delta: float) -> int:
    """How many draws keep all outputs within ``epsilon`` with probability 1 - ``delta``.

    Args:
        sensitivities: [units].
        outputs: how many numbers the bound must hold for together.
        epsilon: error relative to the sum of the absolute parts, above 0.
        delta: above 0, below 1.
    """
    total = float(sensitivities.sum())
    return math.ceil(total * (2 + 4 / 3 * epsilon) * math.log(2 * outputs / delta) / epsilon**2)


def error_bound(sensitivities: Tensor, outputs: int, draws: int, delta: float) -> float:
    """The epsilon that :func:`draws_for` needs so many draws for."""
    ratio = float(sensitivities.sum()) * math.log(2 * outputs / delta) / draws
    return 2 / 3 * ratio + math.sqrt((2 / 3 * ratio) ** 2 + 2 * ratio)


def drawn_factors(sensitivities: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Unbiased factors on the units after ``draws``, 0 for those not drawn: [units]."""
    chances = sensitivities.double() / sensitivities.double().sum()
    taken = torch.multinomial(chances, draws, replacement=True, generator=generator)
    counts = torch.bincount(taken, minlength=len(chances)).double()
    return counts / (draws * chances).clamp(min=1e-30)

"""residual_norm: how far a unit takes its branch from the identity (Lin et al. 2020).

"Pruning redundant mappings in transformer models via spectral-normalized identity prior" removes
the branches of x + f(x) whose |f(x)| is small beside |x|. A unit's share of its branch is the norm
of what it adds to the sums of the matrix that reads it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import Matrix, matrices, read_by_matrices
from edgeprune.sites import Site, Sites
from edgeprune.sites.depth import Residual
from edgeprune.surgery.gates import readers


def _branch(sites: Sites, site: Site) -> Residual | None:
    """The residual branch that reads the site as a whole, or that the site is."""
    if site.axis == "sublayer":
        return next(each for each in sites.residuals if each.name == site.name)
    nodes = {node for node, _ in readers(sites, sites.atoms[site.name])}
    return next((each for each in sites.residuals if nodes <= set(each.nodes)), None)


def _applies(evidence: Evidence, site: Site) -> bool:
    if site.kind != "width":
        return site.axis == "sublayer"
    return _branch(evidence.sites, site) is not None and read_by_matrices(evidence, site)


@criterion(
    "residual_norm",
    needs="data",
    across_layers=True,
    where="heads, neurons and channels inside a residual branch, and the branch itself",
    applies=_applies,
)
def residual_norm(evidence: Evidence, site: Site) -> Tensor:
    """Norm of what each unit adds to its branch, over the norm of the stream: [units]."""
    branch = _branch(evidence.sites, site)
    assert branch is not None
    norm = evidence.once(branch_norms)[branch.name]
    if site.kind != "width":
        return torch.tensor([norm])
    return norm * sum((_shares(m, site.units) for m in matrices(evidence, site)), torch.zeros(()))


def _shares(matrix: Matrix, units: int) -> Tensor:
    """Norm of what each unit adds to the matrix's sums, over the norm of these: [units]."""
    weight = matrix.weight.double()
    whole = ((weight.T @ weight) * matrix.gram).sum().clamp(min=1e-30)
    return (matrix.moments(units).diagonal().clamp(min=0) / whole).sqrt()


def branch_norms(evidence: Evidence) -> dict[str, float]:
    """Sub-layer -> root of E|f(x)|² / E|x|² over the calibration data."""
    residuals = evidence.sites.residuals
    sums = torch.zeros(2, len(residuals), dtype=torch.float64)
    for values in evidence.values([node for r in residuals for node in (r.branch, r.entry)]):
        squares = torch.stack([x.double().square().sum() for x in values])
        sums += squares.view(-1, 2).T
    norms = (sums[0] / sums[1].clamp(min=1e-30)).sqrt()
    return {each.name: float(norm) for each, norm in zip(residuals, norms, strict=True)}

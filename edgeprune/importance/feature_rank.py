"""feature_rank: the average rank of a unit's feature maps (Lin et al. 2020, "HRank")."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import sources, unit_values
from edgeprune.program.graph import ancestors, shape
from edgeprune.sites import Site


def _maps(evidence: Evidence, site: Site) -> fx.Node | None:
    """The last node before the readers where a unit is a matrix: [batch, units, rows, columns]."""
    flow, atom = evidence.sites.flow, evidence.sites.atoms[site.name].root
    before = set().union(*(ancestors(source) for source in sources(evidence.sites, site)))
    for node in reversed(flow.dims):
        dims = flow.of(node) if node in before else ()
        if len(dims) == 4 and dims[0].root is flow.batch.root and dims[1].root is atom:
            return node if min(shape(node)[2:]) > 1 else None
    return None


@criterion(
    "feature_rank",
    needs="data",
    across_layers=True,
    where="channels of images, and heads",
    applies=lambda evidence, site: _maps(evidence, site) is not None,
)
def feature_rank(evidence: Evidence, site: Site) -> Tensor:
    """Mean rank of the map [rows, columns] of each unit over the examples: [units]."""
    node = _maps(evidence, site)
    assert node is not None
    ranks = [
        torch.linalg.matrix_rank(values.unflatten(2, shape(node)[2:])[..., 0]).float()
        for (values,) in unit_values(evidence, site, [node])
    ]
    return torch.cat(ranks).mean(0)

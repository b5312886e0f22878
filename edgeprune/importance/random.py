"""random: a seeded generator's word, the baseline every criterion must beat."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.sites import Site


@criterion("random", needs="weights", across_layers=True)
def random(evidence: Evidence, site: Site) -> Tensor:
    """Uniform numbers, seeded by the evidence's seed and the site's name: [units]."""
    seed = zlib.crc32(f"{evidence.seed} {site.name}".encode())
    return torch.rand(site.units, generator=torch.Generator().manual_seed(seed))

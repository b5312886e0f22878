"""einsum: one letter, one dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.sites import find_sites
from edgeprune.surgery import apply, masked


class Mixed(nn.Module):
    """Attention over four fields with two heads, all of it in letters."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Parameter(torch.randn(5, 2, 3))
        self.outward = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.einsum("bfd,dhe->bfhe", x, self.inward)
        weights = torch.einsum("bfhe,bghe->bhfg", q, q).softmax(-1)
        mixed = torch.einsum("bhfg,bghe->bfhe", weights, q)
        return self.outward(mixed.flatten(2)).sum(1)


def test_heads_behind_an_einsum_are_cut_like_any_other() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    sites = find_sites(capture(Mixed().double(), (x,)))
    (heads,) = (site for site in sites.cuttable if site.units == 2)
    plan = Plan(sites.program.fingerprint, {heads.name: (1,)})
    slim = apply(sites.program, plan, sites)
    assert slim.tensors["inward"].shape == (5, 1, 3)
    assert torch.allclose(slim(x), masked(sites, plan)(x), rtol=0, atol=1e-12)

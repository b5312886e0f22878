"""Who uses an atom up: also calls whose result carries the same atom again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply, masked


class OneMatrix(nn.Module):
    """x + W x, whose matrix reads and writes the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.square, self.outward = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        return self.outward(x + torch.tanh(self.square(x)))


class Gram(nn.Module):
    """The products of all pairs of features, averaged over one of the two."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        return self.outward((x.transpose(1, 2) @ x).mean(1))


def found(model: nn.Module) -> Sites:
    return find_sites(capture(model.double(), (torch.randn(2, 4, 3, dtype=torch.float64),)))


def test_a_matrix_that_reads_and_writes_one_stream_reads_zeros_where_it_is_masked() -> None:
    sites = found(OneMatrix())
    (stream,) = (site for site in sites.cuttable if site.kind == "width")
    plan = Plan(sites.program.fingerprint, {stream.name: (0, 2, 5)})
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    slim = apply(sites.program, plan, sites)
    assert slim.tensors["square.weight"].shape == (3, 3)
    assert torch.allclose(slim(x), masked(sites, plan)(x), rtol=0, atol=1e-12)


def test_an_atom_in_two_dimensions_of_one_tensor_stays_whole() -> None:
    (site,) = (site for site in found(Gram()).sites if site.units == 6)
    assert site.why_not is not None and "in two dimensions" in site.why_not

"""A layer between two others, captured and cut: what the rules' tests share."""

from __future__ import annotations

import random

import torch
from families.checks import difference
from torch import Tensor, nn

from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.program.program import as_tuple
from edgeprune.sites import Site, Sites, find_sites
from edgeprune.surgery import apply, masked


class Between(nn.Module):
    """A convolution to ``width`` channels, the layer, and one that reads what it gives."""

    def __init__(self, layer: nn.Module, width: int, after: int, space: int = 2) -> None:
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[space]
        self.before, self.layer, self.after = kind(3, width, 1), layer, kind(after, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x).sigmoid()))


class Do(nn.Module):
    """A function as a layer."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


def found_in(layer: nn.Module, width: int, after: int, space: int = 2) -> Sites:
    """The sites around a layer, in float64, on inputs [2, 3, 8, ...]."""
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, *[8] * space, dtype=torch.float64)
    return find_sites(capture(Between(layer, width, after, space).double(), (inputs,)))


def units(found: Sites) -> dict[str, tuple[str, int]]:
    """Name -> (axis, units) of every width that can be cut exactly."""
    return {site.name: (site.axis, site.units) for site in _widths(found)}


def _widths(found: Sites) -> list[Site]:
    return [site for site in found.cuttable if site.kind == "width" and site.exact]


def worst_cut(found: Sites, plans: int = 3) -> float:
    """The largest difference of cut and masked over random plans that cut every width."""
    draw, worst = random.Random(0), 0.0
    (example,) = found.program.example_inputs
    for _ in range(plans):
        kept = {
            site.name: tuple(sorted(draw.sample(range(site.units), draw.randint(1, site.units))))
            for site in _widths(found)
        }
        plan = Plan(found.program.fingerprint, dict(kept))
        with torch.no_grad():
            got = as_tuple(apply(found.program, plan, found)(example))
            wanted = as_tuple(masked(found, plan)(example))
        worst = max(worst, difference(got, wanted))
    return worst

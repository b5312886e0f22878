"""coordinate: how well a unit knows where points are, beside taylor_fo (Huang 2023, "CP3").

A network on points must not lose the channels that know where points are. CP3 adds to any
criterion how strongly a channel's values over an example's points correlate with the points'
coordinates. ``coordinate`` does so with ``taylor_fo``; :func:`enhanced` with any other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from edgeprune.importance.criterion import CRITERIA, Score, criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.taylor_fo import taylor_fo
from edgeprune.importance.units import sources, unit_values
from edgeprune.program.graph import shape
from edgeprune.sites import Site

COORDINATES = 3


def enhanced(base: Score) -> Score:
    """A criterion's scores, moved to 0...1, plus the correlation with the coordinates, 0...1."""

    def score(evidence: Evidence, site: Site) -> Tensor:
        scores = base(evidence, site).double()
        spread = (scores.max() - scores.min()).clamp(min=1e-30)
        return (scores - scores.min()) / spread + coordinate_correlation(evidence, site)

    return score


def _applies(evidence: Evidence, site: Site) -> bool:
    return CRITERIA["taylor_fo"].applies(evidence, site) and bool(_places(evidence, site))


@criterion(
    "coordinate",
    needs="gradients",
    across_layers=False,
    where="all that are computed for every point of a point cloud",
    applies=_applies,
)
def coordinate(evidence: Evidence, site: Site) -> Tensor:
    """``taylor_fo``, moved to 0...1, plus the correlation with coordinates: [units]."""
    return enhanced(taylor_fo)(evidence, site)


def coordinate_correlation(evidence: Evidence, site: Site) -> Tensor:
    """Mean over examples of the largest |correlation| with a coordinate: [units], 0 to 1."""
    total, count = torch.zeros(site.units, dtype=torch.float64), 0
    nodes = _places(evidence, site)
    for batch, values in zip(evidence.batches, unit_values(evidence, site, nodes), strict=True):
        points = torch.nn.functional.normalize(_centred(_points(batch)), dim=1)
        for each in values:
            units = torch.nn.functional.normalize(_centred(each.mean(3).transpose(1, 2)), dim=1)
            total += (units.transpose(1, 2) @ points).abs().amax(2).sum(0)
            count += len(units)
    return total / max(1, count)


def _places(evidence: Evidence, site: Site) -> list[fx.Node]:
    """What the site's readers read point by point."""
    example = evidence.sites.program.example_inputs
    points = _points(example) if _point_input(example) is not None else None
    if points is None:
        return []
    batch, count = points.shape[:2]
    flow, atom = evidence.sites.flow, evidence.sites.atoms[site.name]
    found = []
    for node in sources(evidence.sites, site):
        own = next(dim.size for dim in flow.of(node) if dim.contains(atom))
        if math.prod(shape(node)) == batch * count * own:
            found.append(node)
    return found


def _point_input(batch: tuple[Tensor, ...]) -> Tensor | None:
    """The first float input of three dimensions, one of them the coordinates."""
    for x in batch:
        if x.is_floating_point() and x.ndim == 3 and COORDINATES in x.shape[1:]:
            return x
    return None


def _points(batch: tuple[Tensor, ...]) -> Tensor:
    """Coordinates as [examples, points, 3]."""
    found = _point_input(batch)
    assert found is not None
    return found if found.shape[2] == COORDINATES else found.transpose(1, 2)


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(1, keepdim=True)

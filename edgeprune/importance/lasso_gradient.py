"""lasso_gradient: as lasso, where the loss feels the difference (Guo et al. 2020, "CPLI").

As ``lasso``, but every feature of the next layer weighs by the loss's squared gradient there: what
the loss does not feel need not be rebuilt. The paper also passes over features that its next stage
will remove; plans are not made layer by layer here, so none is known to go.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence, task_loss
from edgeprune.importance.lasso import survivals
from edgeprune.importance.readers import Reader
from edgeprune.sites import Site

MOST_ROWS = 512
"""Of a batch: each costs outputs x units squared."""


@criterion(
    "lasso_gradient",
    needs="labels",
    across_layers=False,
    where="all that one matrix of its own reads",
    applies=lambda evidence, site: site.name in evidence.readers,
)
def lasso_gradient(evidence: Evidence, site: Site) -> Tensor:
    """How many of the penalties, from large to small, leave the unit a factor: [units]."""
    return survivals(weighted_moments(evidence, site))


def weighted_moments(evidence: Evidence, site: Site) -> Tensor:
    """Sum of g² part_u part_v over rows and outputs, g the loss's gradient: [units, units]."""
    reader = evidence.readers[site.name]
    weight = evidence.sites.program.tensors[reader.weight]
    moments = torch.zeros(site.units, site.units, dtype=torch.float64)
    for x, gradient in _felt(evidence, reader):
        rows, felt = reader.features(x), reader.results(gradient).abs()
        every = torch.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).long()
        parts = reader.parts(weight, rows[every], site.units) * felt[every][:, :, None]
        flat = parts.flatten(0, 1).double()
        moments += flat.T @ flat
    return moments


def _felt(evidence: Evidence, reader: Reader) -> Iterator[tuple[Tensor, Tensor]]:
    """(what the reader reads, the loss's gradient by what it gives), batch by batch."""
    assert evidence.labels is not None

    class Leaving(fx.Interpreter):
        """Starts the gradient's tape behind the reader."""

        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n is reader.node:
                self.read = self.env[reader.source]
                self.given = result = result.detach().requires_grad_()
            return result

    for batch, labels in zip(evidence.batches, evidence.labels, strict=True):
        run = Leaving(evidence.sites.program.module)
        with torch.enable_grad():
            loss = task_loss(run.run(*batch), labels) * len(labels)
            (gradient,) = torch.autograd.grad(loss, [run.given])
        yield run.read.detach(), gradient

"""hessian_trace: the loss's mean curvature along a unit's weights (Yu et al. 2022, "HAP").

trace(H_uu) / 2p x |w_u|² for the p weights that compute the unit, the trace by Hutchinson's
estimator. The loss is how far the outputs move, so that no labels are needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence, float_outputs
from edgeprune.importance.units import by_unit, own_rows
from edgeprune.sites import Site

# Random vectors per batch.
DRAWS = 8


@criterion(
    "hessian_trace",
    needs="gradients",
    across_layers=True,
    where="all with weights of their own",
    applies=lambda evidence, site: any(own_rows(evidence.sites, site)),
)
def hessian_trace(evidence: Evidence, site: Site) -> Tensor:
    """Half the mean curvature times the squared norm of each unit's own weights: [units]."""
    diagonals, flow = evidence.once(_diagonals), evidence.sites.flow
    atom, axes = evidence.sites.atoms[site.name], dict(site.weights)
    weights, curvatures = [], []
    for path, rows in own_rows(evidence.sites, site):
        axis = axes[path]
        weights.append(rows)
        curvatures.append(by_unit(diagonals[path], axis, flow.tensors[path][axis], atom).flatten(1))
    return torch.cat(curvatures, 1).mean(1) * torch.cat(weights, 1).square().sum(1) / 2


def _diagonals(evidence: Evidence) -> dict[str, Tensor]:
    """Path -> estimated diagonal of the Hessian of the outputs' movement, in its shape."""
    module = evidence.sites.program.module
    weights = {path: each.detach().requires_grad_() for path, each in module.named_parameters()}
    totals = {path: torch.zeros_like(each) for path, each in weights.items()}
    generator = torch.Generator().manual_seed(evidence.seed)
    for batch, dense in zip(evidence.batches, evidence.outputs, strict=True):
        with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
            outputs = float_outputs(functional_call(module, weights, batch))
        parts = zip(outputs, dense, evidence.spread, strict=True)
        loss = torch.stack([(x - y).square().sum() / s for x, y, s in parts]).mean()
        found = hessian_diagonal(loss, list(weights.values()), generator, DRAWS)
        for total, each in zip(totals.values(), found, strict=True):
            total += each
    return totals


def hessian_diagonal(
    loss: Tensor, weights: Sequence[Tensor], generator: torch.Generator, draws: int
) -> list[Tensor]:
    """Hutchinson's estimate of the diagonal of the Hessian: the mean of v * Hv over signs v.

    Args:
        loss: a scalar with a graph behind it.
        weights: what it is derived by.
        generator: of the signs.
        draws: how many vectors; the error falls with their square root.
    """
    slopes = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    totals = [torch.zeros_like(each) for each in weights]
    for _ in range(draws):
        signs = [
            (torch.randint(0, 2, each.shape, generator=generator) * 2 - 1).to(each)
            for each in weights
        ]
        turned = torch.autograd.grad(
            slopes, weights, signs, retain_graph=True, materialize_grads=True
        )
        for total, sign, turn in zip(totals, signs, turned, strict=True):
            total += sign * turn / draws
    return totals

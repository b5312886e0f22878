"""hsic: how far the outputs depend on a unit, by the Hilbert-Schmidt criterion (Hou & Kung 2022).

HSIC(X, Y) = tr(K_x K_y), both doubly centred, over the calibration examples: K_x is the mean of
Gaussian kernels of widths 1 to 16 of a unit's values, K_y the linear kernel of the softmax of the
outputs. Wide units (heads) that depend on one another as well count less; of narrow ones
(neurons, channels) the dependence is only a tenth of the score, the activation the rest, as in
the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.activation import activation
from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.units import has_values, unit_values
from edgeprune.sites import Site

WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
# Weight of the dependence among heads, and of that on the outputs for neurons.
MUTUAL = 0.1
OF_OUTPUT = 0.1


@criterion("hsic", needs="data", across_layers=False, where="all with a reader", applies=has_values)
def hsic(evidence: Evidence, site: Site) -> Tensor:
    """Dependence of the outputs on each unit, less what others share: [units]."""
    whole = [torch.cat(parts) for parts in zip(*unit_values(evidence, site), strict=True)]
    features = torch.cat([values.mean(3) for values in whole], dim=2).transpose(0, 1)
    scores = torch.cat([first.softmax(-1).flatten(1) for first, *_ in evidence.outputs]).double()
    kernels = centred(gaussian_kernels(features.double()))
    relevance = torch.einsum("uij,ij->u", kernels, centred(scores @ scores.T))
    if whole[0].shape[3] > 1:
        mutual = torch.einsum("uij,vij->uv", kernels, kernels).fill_diagonal_(0.0)
        return relevance - MUTUAL * mutual.sum(1) / max(1, site.units - 1)
    return OF_OUTPUT * _spread(relevance) + (1 - OF_OUTPUT) * _spread(activation(evidence, site))


def gaussian_kernels(features: Tensor) -> Tensor:
    """Mean over :data:`WIDTHS` of exp(-|x - y|² / 2 width²): [..., examples, examples].

    Args:
        features: [..., examples, features].
    """
    squares = torch.cdist(features, features).square()
    return torch.stack([(-squares / (2 * width**2)).exp() for width in WIDTHS]).mean(0)


def centred(kernel: Tensor) -> Tensor:
    """Rows and columns [..., n, n] less their means."""
    kernel = kernel - kernel.mean(-1, keepdim=True)
    return kernel - kernel.mean(-2, keepdim=True)


def _spread(scores: Tensor) -> Tensor:
    """Scores moved to 0...1."""
    return (scores - scores.min()) / (scores.max() - scores.min()).clamp(min=1e-30)

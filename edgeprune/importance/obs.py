"""obs: what the layer that reads a unit cannot make up for (Kurtic et al. 2023, "ZipLM").

The structured optimal brain surgeon: greedy removal, each time with an exact refit. The squared
error at the reading matrix, after the remaining columns have been refitted, is
tr(W_s (H^-1_ss)^-1 W_s^T) for a unit's columns s. The least harmful units go first, and W and H^-1
are updated as if they had never been there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.readers import augmented, regularised
from edgeprune.importance.units import steps
from edgeprune.sites import Site

# Units removed between two updates, as a share of all: 1 in 128 costs 12 ms a step for 1536
# neurons instead of seconds, and changes the order only among near-equals.
STEPS = 128


@criterion(
    "obs",
    needs="data",
    across_layers=False,
    where="all that one matrix of its own reads",
    applies=lambda evidence, site: site.name in evidence.readers,
)
def obs(evidence: Evidence, site: Site) -> Tensor:
    """The step at which greedy removal takes each unit: [units], the last one highest."""
    reader = evidence.readers[site.name]
    tensors = evidence.sites.program.tensors
    bias = tensors[reader.bias] if reader.bias else None
    weight, gram = augmented(tensors[reader.weight], bias), regularised(evidence.grams[site.name])
    if not reader.takes_means:  # nothing can take the mean over
        weight, gram = weight[:, :-1], gram[:-1, :-1]
    return steps(removal_order(weight, gram, reader.columns_by_unit(site.units)))


def removal_order(weight: Tensor, gram: Tensor, columns: Tensor) -> Tensor:
    """Units in the order in which greedy removal takes them.

    Args:
        weight: [out, in].
        gram: second moments of the input, [in, in], invertible.
        columns: input columns of every unit, [units, columns per unit].
    """
    weight = weight.clone()
    inverse = torch.linalg.inv(gram)
    left = torch.ones(len(columns), dtype=torch.bool)
    step = max(1, len(columns) // STEPS)
    order: list[int] = []
    while bool(left.any()):
        units = left.nonzero()[:, 0]
        errors = removal_errors(weight, inverse, columns[units])
        taken = units[errors.argsort()[:step]]
        order += taken.tolist()
        left[taken] = False
        _remove(weight, inverse, columns[taken].flatten())
    return torch.tensor(order)


def removal_errors(weight: Tensor, inverse: Tensor, columns: Tensor) -> Tensor:
    """Squared error that removing each unit alone leaves after a refit: [units].

    Args:
        weight: [out, in].
        inverse: of the input's second moments, [in, in].
        columns: input columns of every unit, [units, columns per unit].
    """
    blocks = inverse[columns[:, :, None], columns[:, None, :]]
    parts = weight[:, columns].permute(1, 2, 0)
    return (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))


def _remove(weight: Tensor, inverse: Tensor, gone: Tensor) -> None:
    """Eliminate columns in place; their rows of the inverse become those of an identity."""
    solved = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
    weight -= weight[:, gone] @ solved
    inverse -= inverse[:, gone] @ solved
    weight[:, gone] = 0
    inverse[gone] = 0
    inverse[:, gone] = 0
    inverse[gone, gone] = 1

"""gate_taylor: how a unit's gate moves the task's loss (You et al. 2019, "Gate Decorator").

McCarley 2019 and Michel et al. 2019 rank heads so. Absolute values are taken example by example:
over a batch, the gradients of a trained model cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence, task_loss
from edgeprune.sites import Site


@criterion("gate_taylor", needs="labels", across_layers=True)
def gate_taylor(evidence: Evidence, site: Site) -> Tensor:
    """Mean over examples of |gradient of the loss by the gate|: [units]."""
    return evidence.once(_gradients)[site.name]


def _gradients(evidence: Evidence) -> dict[str, Tensor]:
    assert evidence.labels is not None
    gates = evidence.gated.gates
    totals = {name: torch.zeros_like(gate.data) for name, gate in gates.items()}
    examples = 0
    for batch, labels in zip(evidence.batches, evidence.labels, strict=True):
        for row in range(len(labels)):
            one = tuple(x[row : row + 1] for x in batch)
            loss = task_loss(evidence.gated(*one), labels[row : row + 1])
            gradients = torch.autograd.grad(loss, list(gates.values()))
            for name, gradient in zip(totals, gradients, strict=True):
                totals[name] += gradient.abs()
            examples += 1
    return {name: total / examples for name, total in totals.items()}

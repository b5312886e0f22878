"""snip: how far the loss moves per weight that leaves with a unit (Lee et al. 2019, "SNIP").

Connection sensitivity |weight x gradient| of the task's loss on the labelled calibration batches.
The paper ranks single weights, before training; scattered zeros make no dense kernel faster, so a
unit's is the sum over all weights that leave with it. It works on untrained networks, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence, task_loss
from edgeprune.importance.units import by_unit
from edgeprune.sites import Site


@criterion("snip", needs="labels", across_layers=True)
def snip(evidence: Evidence, site: Site) -> Tensor:
    """Share of the network's total sensitivity that a unit's weights hold: [units]."""
    sensitivity = evidence.once(connection_sensitivity)
    sites, atom = evidence.sites, evidence.sites.atoms[site.name]
    found = torch.zeros(site.units, dtype=torch.float64)
    for path, axis in site.weights:
        if path in sensitivity:
            rows = by_unit(sensitivity[path], axis, sites.flow.tensors[path][axis], atom)
            found += rows.flatten(1).sum(1)
    return found


def connection_sensitivity(evidence: Evidence) -> dict[str, Tensor]:
    """Path -> |weight x gradient| of every weight, all of them adding up to 1."""
    assert evidence.labels is not None
    module = evidence.sites.program.module
    weights = {
        path: tensor.detach().clone().requires_grad_()
        for path, tensor in evidence.sites.program.tensors.items()
        if isinstance(tensor, torch.nn.Parameter)
    }
    total = {path: torch.zeros_like(weight) for path, weight in weights.items()}
    for batch, labels in zip(evidence.batches, evidence.labels, strict=True):
        with torch.enable_grad():
            loss = task_loss(torch.func.functional_call(module, weights, batch), labels)
            found = torch.autograd.grad(
                loss * len(labels), list(weights.values()), allow_unused=True
            )
        for path, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                total[path] += gradient
    sensitivity = {p: (total[p] * weights[p].detach()).abs().double() for p in weights}
    whole = sum(float(each.sum()) for each in sensitivity.values())
    return {path: each / max(whole, 1e-30) for path, each in sensitivity.items()}

"""taylor_so: a unit's Fisher information, for the second derivative (Theis et al. 2018).

Half the second derivative of the expected log-likelihood by a unit's gate, the first being nil
when the model's own answers are taken for true: labels are drawn from its softmax (Molchanov et al.
2019 give the form with both derivatives).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence, float_outputs
from edgeprune.sites import Site

# Labels drawn per example.
DRAWS = 8


@criterion("taylor_so", needs="gradients", across_layers=True)
def taylor_so(evidence: Evidence, site: Site) -> Tensor:
    """Expected loss of log-likelihood per example when the unit is masked: [units]."""
    return evidence.once(_information)[site.name] / 2


def _information(evidence: Evidence) -> dict[str, Tensor]:
    """Site -> mean squared gradient of the log-likelihood of a drawn label by each gate."""
    generator = torch.Generator().manual_seed(evidence.seed)
    gates = evidence.gated.gates
    totals = {name: torch.zeros_like(gate.data) for name, gate in gates.items()}
    for batch in evidence.batches:
        scores = float_outputs(evidence.gated(*batch))[0].log_softmax(-1).flatten(0, -2)
        for draw in range(DRAWS):
            labels = torch.multinomial(scores.detach().exp(), 1, generator=generator)
            gradients = torch.autograd.grad(
                scores.gather(1, labels).sum(), list(gates.values()), retain_graph=draw < DRAWS - 1
            )
            for name, gradient in zip(totals, gradients, strict=True):
                totals[name] += gradient.square()
    examples = sum(len(batch[0]) for batch in evidence.batches)
    return {name: total / (DRAWS * examples) for name, total in totals.items()}

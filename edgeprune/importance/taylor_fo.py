"""taylor_fo: how far turning a unit down moves the outputs (Molchanov et al. 2019, "Taylor-FO").

The loss there is the task's. Here it is a random projection of the outputs, so that the mean
squared gradient of a unit's gate estimates how far the outputs move to first order when the unit
is turned down (the Gauss-Newton diagonal; Hutchinson's estimator).
"""

from __future__ import annotations

from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.sites import Site


@criterion("taylor_fo", needs="gradients", across_layers=True)
def taylor_fo(evidence: Evidence, site: Site) -> Tensor:
    """Mean squared gradient of the projected outputs with respect to each unit's gate: [units]."""
    return evidence.gate_gradients[site.name]

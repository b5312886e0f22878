"""BatchNorm statistics of a cut program, taken anew from calibration data.

In evaluation a BatchNorm reads what the ones before it have normalised by *their stored*
statistics. So the statistics are exact only layer after layer, each over all batches, with those
before it already final. One pass in training mode is not: there every batch is normalised by its
own, and a running average of them need not converge (Yu and Huang 2019, "Universally slimmable
networks", find the exact ones necessary after a change of width).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from edgeprune.program.batch_norm import batch_norms, moments_of
from edgeprune.program.graph import set_tensor
from edgeprune.program.program import Program
from edgeprune.program.walk import Walk


def reestimate(program: Program, batches: Sequence[tuple[Tensor, ...]]) -> Program:
    """A program whose every BatchNorm holds the mean and variance of what it reads.

    Args:
        program: never changed; returned as it is where it has no BatchNorm.
        batches: calibration inputs without labels, at least one.
    """
    if not batch_norms(program.module):
        return program
    module = copy.deepcopy(program.module)
    walk = Walk(module, batches)
    tensors = program.tensors
    for norm in batch_norms(module):
        found = moments_of(walk.inputs_of(norm.node))
        set_tensor(module, norm.mean, found.mean.to(tensors[norm.mean].dtype))
        set_tensor(module, norm.variance, found.variance.to(tensors[norm.variance].dtype))
    return replace(program, module=module)

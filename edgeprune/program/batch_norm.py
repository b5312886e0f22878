"""BatchNorm in a graph: where its statistics lie, what data says they are, and how to move them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, fx

from edgeprune.program.graph import ATEN, calls, is_call


class BatchNorm(NamedTuple):
    """A normalisation by stored statistics.

    Attributes:
        node: the call; its first argument is [batch, channels, ...].
        mean, variance: paths of its statistics, [channels].
        epsilon: added to the variance.
    """

    node: fx.Node
    mean: str
    variance: str
    epsilon: float


def batch_norms(module: fx.GraphModule) -> list[BatchNorm]:
    """The graph's BatchNorms with stored statistics of their own, in graph order."""
    found = map(batch_norm_at, calls(module.graph, ATEN.batch_norm))
    return [norm for norm in found if norm is not None]


def batch_norm_at(node: fx.Node) -> BatchNorm | None:
    """The BatchNorm that a node calls, if it is one with stored statistics of its own."""
    if not is_call(node, ATEN.batch_norm):
        return None
    mean, variance, training, epsilon = (node.args[i] for i in (3, 4, 5, 7))
    if training or not (_own(mean) and _own(variance)):
        return None
    return BatchNorm(node, str(mean.target), str(variance.target), float(epsilon))  # type: ignore[arg-type]


def _own(node: Any) -> TypeGuard[fx.Node]:
    """Whether it is a stored tensor that nothing else in the graph reads."""
    if not isinstance(node, fx.Node):
        return False
    same = (n for n in node.graph.nodes if n.op == "get_attr" and n.target == node.target)
    return node.op == "get_attr" and sum(len(n.users) for n in same) == 1


@dataclass(frozen=True)
class Moments:
    """Mean and (population) variance of every channel, [channels] in float64."""

    count: int
    mean: Tensor
    variance: Tensor

    def at(self, channels: Tensor) -> Moments:
        """Those of some channels."""
        return Moments(self.count, self.mean[channels], self.variance[channels])

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of numbers together (Chan et al. 1983)."""
        count = self.count + other.count
        share = other.count / count
        step = other.mean - self.mean
        within = self.variance * (1 - share) + other.variance * share
        return Moments(
            count, self.mean + share * step, within + share * (1 - share) * step.square()
        )


def moments_of(inputs: Iterable[Tensor]) -> Moments:
    """Exact moments over all batches [batch, channels, ...] together."""
    total: Moments | None = None
    for x in inputs:
        over = [dim for dim in range(x.ndim) if dim != 1]
        variance, mean = torch.var_mean(x, over, correction=0)
        found = Moments(x.numel() // x.shape[1], mean.double(), variance.double())
        total = found if total is None else total + found
    assert total is not None, "moments of no batches"
    return total


def carried(
    mean: Tensor, variance: Tensor, before: Moments, after: Moments, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Stored statistics, moved as a cut has moved those of the calibration data.

    Where the cut takes each channel x to a x + b, this is what the training data would give. Data
    that a cut does not reach keep their statistics, however few examples calibration has: taken
    from 64 examples alone, those of an uncut network would move its outputs.

    Args:
        mean, variance: as stored with the uncut program, [channels].
        before, after: on calibration data, without and with the cut.
        epsilon: of the normalisation.
    """
    ratio = ((after.variance + epsilon) / (before.variance + epsilon)).sqrt()
    new_mean = after.mean + ratio * (mean.double() - before.mean)
    new_variance = (variance.double() + epsilon) * ratio.square() - epsilon
    return new_mean.to(mean.dtype), new_variance.clamp(min=0).to(variance.dtype)

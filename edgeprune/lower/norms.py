"""A batch norm after a convolution or a linear layer is part of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from edgeprune.lower.graph import argument, aten, attribute_of, constant, is_call, replace, shape_of

PLAIN = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
TRANSPOSED = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)


def fold_batch_norm(module: GraphModule) -> None:
    """Multiply the norms' scales into the weights before them, in place; values are propagated.

    XNNPACK does so itself where the two are neighbours; after other rewrites they are not.
    """
    for node in list(module.graph.nodes):
        if is_call(node, aten.batch_norm.default) and not argument(node, 5, "training"):
            _fold(module, node)
    module.graph.eliminate_dead_code()


def _fold(module: GraphModule, norm: Node) -> None:
    layer = norm.args[0]
    if not isinstance(layer, Node) or not _takes_norm(layer):
        return
    sources = (argument(layer, 1, "weight"), argument(layer, 2, "bias"), *norm.args[1:5])
    held = [attribute_of(module, source) for source in sources]
    if any(source is not None and each is None for source, each in zip(sources, held, strict=True)):
        return
    weight, bias, scale, shift, mean, variance = held
    if weight is None or mean is None or variance is None:
        return
    factor = (variance + float(argument(norm, 7, "eps"))).rsqrt()
    factor = factor if scale is None else factor * scale
    moved = (-mean if bias is None else bias - mean) * factor
    moved = moved if shift is None else moved + shift
    with module.graph.inserting_before(layer):
        scaled = _scaled(layer, weight, factor)
        weights = constant(module, f"{layer.name}_weight", scaled, like=layer)
        biases = constant(module, f"{layer.name}_bias", moved, like=layer)
    layer.args = (layer.args[0], weights, biases, *layer.args[3:])
    replace(norm, layer)


def _takes_norm(layer: Node) -> bool:
    """Whether its weights make channels, dimension 1, and nobody else reads them."""
    if is_call(layer, aten.linear.default) and len(shape_of(layer)) != 2:
        return False
    return is_call(layer, *PLAIN, *TRANSPOSED) and len(layer.users) == 1


def _scaled(layer: Node, weight: Tensor, factor: Tensor) -> Tensor:
    """The weight with each output channel times its factor."""
    if not is_call(layer, *TRANSPOSED):
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    groups: Any = argument(layer, 6, "groups", 1)  # [groups x in, out, ...]
    apart = weight.unflatten(0, (groups, -1))
    return (apart * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).flatten(0, 1)

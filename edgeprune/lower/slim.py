"""Parts of a graph that our own kernels run faster, each as one of our operators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.fx import GraphModule, Node

from edgeprune.lower.fuse_attention import fuse_attention
from edgeprune.lower.graph import (
    argument,
    aten,
    attribute_of,
    constant,
    emit,
    is_call,
    replace,
    shape_of,
)
from edgeprune.lower.lowering import Lowering
from edgeprune.lower.ops import OURS
from edgeprune.lower.selections import fuse_selections

# Where our int8 matrix product was measured to win over XNNPACK's.
LINEAR_WINS = {"avx512_vnni"}


def fuser(lowering: Lowering) -> Iterator[Callable[[GraphModule], None]]:
    """The pass that puts our operators in place, where our delegate is wanted.

    It changes an ATen graph with propagated values at batch 1: attention and layer norms become
    ours, and in int8 linear layers do where the device has what makes them win.
    """
    if lowering.delegate == "auto":
        yield partial(_fuse, linears=linears_win(lowering))


def linears_win(lowering: Lowering) -> bool:
    """Whether our kernel for linear layers beats XNNPACK's."""
    return lowering.precision == "int8" and bool(LINEAR_WINS & set(lowering.isa))


def _fuse(module: GraphModule, linears: bool) -> None:
    fuse_selections(module)
    fuse_attention(module)
    for node in list(module.graph.nodes):
        if is_call(node, aten.layer_norm.default):
            _fuse_norm(module, node)
    if linears:
        for node in list(module.graph.nodes):
            if is_call(node, aten.linear.default):
                _quantise_linear(module, node)
    module.graph.eliminate_dead_code()


def is_ours(node: Node) -> bool:
    """Whether a node calls one of our operators, in ATen or in ExecuTorch's dialect."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.startswith("edgeprune::")


def _fuse_norm(module: GraphModule, norm: Node) -> None:
    x, shape = norm.args[0], argument(norm, 1, "normalized_shape")
    weight, bias = (
        attribute_of(module, argument(norm, place, name))
        for place, name in ((2, "weight"), (3, "bias"))
    )
    assert isinstance(x, Node)
    if len(shape) != 1 or weight is None or not _fits(x):
        return
    graph, eps = module.graph, float(argument(norm, 4, "eps", 1e-5))
    bias = torch.zeros_like(weight) if bias is None else bias
    summands = _summands(x)
    # The sum may have readers before the norm.
    with graph.inserting_before(x.next if summands else norm):
        held = [
            constant(module, f"{norm.name}_{n}", t, x)
            for n, t in zip("wb", (weight, bias), strict=True)
        ]
        both = emit(graph, OURS.add_layer_norm.default, *(summands or (x, None)), *held, eps)
        normed, total = (emit(graph, operator.getitem, both, part) for part in (0, 1))
    replace(norm, normed)
    if summands is not None:
        replace(x, total)


def _fits(x: Node) -> bool:
    """Whether a region can hold it."""
    like = x.meta["val"]
    return like.dtype == torch.float32 and like.dim() <= 4 and like.numel() > 0


def _summands(x: Node) -> tuple[Node, Node] | None:
    """The two tensors of a residual sum; None where ``x`` is none."""
    if not is_call(x, aten.add.Tensor) or argument(x, 2, "alpha", 1) != 1:
        return None
    one, other = x.args[:2]
    if not isinstance(one, Node) or not isinstance(other, Node):
        return None
    return (one, other) if shape_of(one) == shape_of(other) == shape_of(x) else None


def _quantise_linear(module: GraphModule, linear: Node) -> None:
    x, bias = linear.args[0], argument(linear, 2, "bias")
    weight = attribute_of(module, argument(linear, 1, "weight"))
    held_bias = attribute_of(module, bias)
    assert isinstance(x, Node)
    if weight is None or (bias is not None and held_bias is None) or not _fits(x):
        return
    scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    rounded = (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
    graph, name = module.graph, linear.name
    last, activation = _activation(linear)
    with graph.inserting_before(linear):
        tensors = [
            constant(module, f"{name}_int8", rounded, x),
            constant(module, f"{name}_scales", scales, x),
            None if held_bias is None else constant(module, f"{name}_bias", held_bias, x),
        ]
        replace(last, emit(graph, OURS.linear_int8.default, x, *tensors, activation))


def _activation(linear: Node) -> tuple[Node, str]:
    """The last node that the kernel computes, and which activation that is."""
    (reader, *others) = linear.users
    if not others and is_call(reader, aten.relu.default):
        return reader, "relu"
    exact = is_call(reader, aten.gelu.default) and argument(reader, 1, "approximate") != "tanh"
    return (reader, "gelu") if exact and not others else (linear, "none")

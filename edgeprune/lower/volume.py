"""Operators over volumes [batch, channels, time, height, width] as pictures, one frame at a time.

Neither XNNPACK nor ExecuTorch has kernels for them. A 3-D convolution is the sum over its kernel's
time steps of 2-D convolutions; pooling and resampling go over space first, then over time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.fx import GraphModule, Node

from edgeprune.lower.graph import argument, aten, attribute_of, constant, emit, replace, shape_of

Rewrite: TypeAlias = Callable[[GraphModule, Node], "Node | None"]
Step: TypeAlias = Callable[[Node], Node]


def rewrite_volumes(module: GraphModule) -> None:
    """Replace 3-D convolutions, pooling and resampling in place; values are propagated.

    What this cannot do exactly (a kernel that is computed, an asymmetric border) stays.
    """
    for node in list(module.graph.nodes):
        rewrite = REWRITES.get(node.target)
        if rewrite is not None and not node._erased:
            with module.graph.inserting_before(node):
                new = rewrite(module, node)
            if new is not None:
                replace(node, new)
    module.graph.eliminate_dead_code()


def _convolution(module: GraphModule, node: Node) -> Node | None:
    weight = attribute_of(module, node.args[1])
    if weight is None:
        return None
    stride, padding, dilation = (_triple(node, 3), _triple(node, 4, 0), _triple(node, 5))
    groups = argument(node, 6, "groups", 1)

    def convolve(pictures: Node, kernel: Node, bias: Node | None) -> Node:
        space = (list(stride[1:]), list(padding[1:]), list(dilation[1:]))
        return emit(module.graph, aten.conv2d.default, pictures, kernel, bias, *space, groups)

    frames = _bordered(module, _frames(module, node.args[0]), padding[0], padding[0])
    kernels = weight.detach().unbind(2)
    return _sum_over_time(module, node, frames, kernels, stride[0], dilation[0], convolve)


def _transposed(module: GraphModule, node: Node) -> Node | None:
    """Frames with ``stride - 1`` empty ones after each, read by the kernel backwards."""
    weight = attribute_of(module, node.args[1])
    stride, padding, more = (_triple(node, 3), _triple(node, 4, 0), _triple(node, 5, 0))
    dilation, groups = _triple(node, 7), argument(node, 6, "groups", 1)
    if weight is None or dilation[0] * (weight.shape[2] - 1) < padding[0]:
        return None

    def convolve(pictures: Node, kernel: Node, bias: Node | None) -> Node:
        space = (list(stride[1:]), list(padding[1:]), list(more[1:]))
        target = aten.conv_transpose2d.input
        given = (pictures, kernel, bias, *space, groups, list(dilation[1:]))
        return emit(module.graph, target, *given)

    border = dilation[0] * (weight.shape[2] - 1) - padding[0]
    frames = _spread(module, _frames(module, node.args[0]), stride[0])
    frames = _bordered(module, frames, border, border + more[0])
    kernels = weight.detach().unbind(2)[::-1]
    return _sum_over_time(module, node, frames, kernels, 1, dilation[0], convolve)


def _sum_over_time(
    module: GraphModule,
    node: Node,
    frames: Node,
    kernels: Sequence[torch.Tensor],
    stride: int,
    dilation: int,
    convolve: Callable[[Node, Node, Node | None], Node],
) -> Node:
    """Result t: the sum over k of frame ``t * stride + k * dilation`` with kernel k."""
    graph, count = module.graph, shape_of(node)[2]
    batch, _, *picture = shape_of(frames)
    bias = argument(node, 2, "bias")
    total: Node | None = None
    for step, kernel in enumerate(kernels):
        start = step * dilation
        window = (start, start + (count - 1) * stride + 1, stride)
        taken = emit(graph, aten.slice.Tensor, frames, 1, *window)
        pictures = emit(graph, aten.reshape.default, taken, [batch * count, *picture])
        held = constant(module, f"{node.name}_step_{step}", kernel, like=node)
        part = convolve(pictures, held, None if total is not None else bias)
        total = part if total is None else emit(graph, aten.add.Tensor, total, part)
    assert total is not None
    apart = emit(graph, aten.reshape.default, total, [batch, count, *shape_of(total)[1:]])
    return emit(graph, aten.permute.default, apart, [0, 2, 1, 3, 4])


def _frames(module: GraphModule, x: Any) -> Node:
    """[batch, time, channels, height, width]."""
    return emit(module.graph, aten.permute.default, x, [0, 2, 1, 3, 4])


def _bordered(module: GraphModule, frames: Node, before: int, after: int) -> Node:
    """With empty frames at both ends."""
    if not before and not after:
        return frames
    border = [0, 0, 0, 0, 0, 0, before, after]
    return emit(module.graph, aten.constant_pad_nd.default, frames, border, 0.0)


def _spread(module: GraphModule, frames: Node, stride: int) -> Node:
    """With ``stride - 1`` empty frames between any two."""
    if stride == 1:
        return frames
    graph = module.graph
    batch, time, *picture = shape_of(frames)
    alone = emit(graph, aten.reshape.default, frames, [batch, time, 1, -1])
    padded = emit(graph, aten.constant_pad_nd.default, alone, [0, 0, 0, stride - 1], 0.0)
    joined = emit(graph, aten.reshape.default, padded, [batch, time * stride, *picture])
    return emit(graph, aten.slice.Tensor, joined, 1, 0, (time - 1) * stride + 1, 1)


def _space_then_time(module: GraphModule, node: Node, space: Step, time: Step) -> Node:
    """For what treats each channel alike and each dimension by itself."""
    graph, x = module.graph, node.all_input_nodes[0]
    batch, channels, frames, *picture = shape_of(x)
    flat = emit(graph, aten.reshape.default, x, [batch, channels * frames, *picture])
    columns = emit(graph, aten.reshape.default, space(flat), [batch, channels, frames, -1])
    return emit(graph, aten.reshape.default, time(columns), list(shape_of(node)))


def _pool(module: GraphModule, node: Node) -> Node | None:
    """Kernel, stride, padding (and dilation) as triples, then what is the same for both."""
    average = node.target == aten.avg_pool3d.default
    if average and argument(node, 6, "divisor_override") is not None:
        return None
    target = aten.avg_pool2d.default if average else aten.max_pool2d.default
    kernel = _triple(node, 1)
    triples = [kernel, _triple(node, 2) if argument(node, 2, "stride") else kernel]
    triples += [_triple(node, 3, 0)] + ([] if average else [_triple(node, 4)])
    rest = node.args[1 + len(triples) :][:2]
    whole = (1, 1, 0, 1)

    def space(x: Node) -> Node:
        return emit(module.graph, target, x, *(list(each[1:]) for each in triples), *rest)

    def time(x: Node) -> Node:
        pairs = ([each[0], one] for each, one in zip(triples, whole, strict=False))
        return emit(module.graph, target, x, *pairs, *rest)

    return _space_then_time(module, node, space, time)


def _adaptive_average(module: GraphModule, node: Node) -> Node:
    frames, *picture = shape_of(node)[2:]
    target = aten.adaptive_avg_pool2d.default
    return _space_then_time(
        module,
        node,
        lambda x: emit(module.graph, target, x, picture),
        lambda x: emit(module.graph, target, x, [frames, shape_of(x)[-1]]),
    )


def _resample(module: GraphModule, node: Node) -> Node:
    """To a size, or by factors."""
    nearest = node.target == aten.upsample_nearest3d.vec
    target = aten.upsample_nearest2d.vec if nearest else aten.upsample_bilinear2d.vec
    corners = () if nearest else (argument(node, 2, "align_corners"),)
    factors = argument(node, 2 if nearest else 3, "scale_factors")
    frames, *picture = shape_of(node)[2:]

    def resized(x: Node, size: list[int], by: list[float] | None) -> Node:
        return emit(module.graph, target, x, None if by else size, *corners, by)

    return _space_then_time(
        module,
        node,
        lambda x: resized(x, picture, factors and list(factors[1:])),
        lambda x: resized(x, [frames, shape_of(x)[-1]], factors and [factors[0], 1.0]),
    )


def _triple(node: Node, place: int, default: int = 1) -> tuple[int, int, int]:
    """An argument for time, height and width; one number stands for all three."""
    given: Any = node.args[place] if len(node.args) > place else default
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    time, height, width = listed * 3 if len(listed) == 1 else listed
    return time, height, width


REWRITES: dict[Any, Rewrite] = {
    aten.conv3d.default: _convolution,
    aten.conv_transpose3d.input: _transposed,
    aten.max_pool3d.default: _pool,
    aten.avg_pool3d.default: _pool,
    aten.adaptive_avg_pool3d.default: _adaptive_average,
    aten.upsample_nearest3d.vec: _resample,
    aten.upsample_trilinear3d.vec: _resample,
}

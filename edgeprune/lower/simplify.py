"""Fewer, friendlier nodes before lowering: no no-ops, merged reshapes, folded constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

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

VIEW_OPS = (
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
)
PERMUTE_OPS = (aten.permute.default, aten.transpose.int, aten.t.default)
REDUCE_OPS = (aten.amax.default, aten.amin.default, aten.sum.dim_IntList, aten.mean.dim)
COPY_OPS = (
    *(aten.dropout.default, aten.contiguous.default, aten.clone.default, aten.alias.default),
    *(aten.detach.default, aten.lift_fresh_copy.default, aten.to.dtype, aten.expand.default),
    *(aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default),
)
CHECK_OPS = (
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range_for_size.default,
)
FOLD_LIMIT_ELEMENTS = 1 << 20


def simplify(module: GraphModule) -> None:
    """Rewrite ``module`` in place, same outputs; values must be propagated.

    Drops checks and copies, folds what depends on no input, merges chains of reshapes and
    permutes, and writes tanh-GELU out (XNNPACK knows only the exact form).
    """
    drop_noops(module)
    fold_constants(module)
    for node in list(module.graph.nodes):
        if is_call(node, aten.gelu.default) and argument(node, 1, "approximate") == "tanh":
            _expand_tanh_gelu(node)
    merge_reshapes(module)
    share_repeated(module)
    module.graph.eliminate_dead_code()


def drop_noops(module: GraphModule) -> None:
    """Take out run-time checks and operators that hand their input on unchanged."""
    for node in list(module.graph.nodes):
        if is_call(node, *CHECK_OPS) or (node.op == "call_module" and not node.users):
            module.graph.erase_node(node)
        elif is_call(node, *COPY_OPS) and _hands_on(node):
            replace(node, node.all_input_nodes[0])
    module.graph.eliminate_dead_code()


def _hands_on(node: Node) -> bool:
    if is_call(node, aten.dropout.default) and node.args[2]:
        return False
    before, after = node.all_input_nodes[0].meta["val"], node.meta["val"]
    return before.dtype == after.dtype and before.shape == after.shape


def fold_constants(module: GraphModule) -> None:
    """Compute at lowering what depends on no input, unless the result is large."""
    values: dict[Node, torch.Tensor] = {}
    for node in list(module.graph.nodes):
        held = attribute_of(module, node)
        if held is not None:
            values[node] = held
        elif _foldable(node) and all(source in values for source in node.all_input_nodes):
            values[node] = _evaluate(node, values)
    for node in [n for n in values if n.op == "call_function"]:
        readers = [user for user in node.users if user not in values]
        if readers:
            with module.graph.inserting_before(node):
                replace(node, constant(module, f"{node.name}_folded", values[node], like=node))
    module.graph.eliminate_dead_code()


def _foldable(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    return not _is_random(node) and node.meta["val"].numel() <= FOLD_LIMIT_ELEMENTS


def _evaluate(node: Node, values: dict[Node, torch.Tensor]) -> torch.Tensor:
    target = node.target
    assert callable(target)
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
    with torch.no_grad():
        result = target(*args, **kwargs)
    assert isinstance(result, torch.Tensor)
    return result


def _expand_tanh_gelu(node: Node) -> None:
    graph, x = node.graph, node.args[0]
    with graph.inserting_before(node):
        cube = emit(graph, aten.mul.Tensor, emit(graph, aten.mul.Tensor, x, x), x)
        inner = emit(graph, aten.add.Tensor, x, emit(graph, aten.mul.Tensor, cube, 0.044715))
        inner = emit(graph, aten.mul.Tensor, inner, math.sqrt(2.0 / math.pi))
        gate = emit(graph, aten.add.Tensor, emit(graph, aten.tanh.default, inner), 1.0)
        half = emit(graph, aten.mul.Tensor, x, 0.5)
        replace(node, emit(graph, aten.mul.Tensor, half, gate))


def merge_reshapes(module: GraphModule) -> None:
    """Merge view-of-view and permute-of-permute, and permute without axes of size one.

    A reduction of such axes alone is a view.
    """
    for node in list(module.graph.nodes):
        if is_call(node, *VIEW_OPS) or _reduces_nothing(node):
            _swap(node, aten.reshape.default, list(shape_of(node)))
        elif is_call(node, *PERMUTE_OPS):
            _swap(node, aten.permute.default, _permutation(node))
    changed = True
    while changed:
        rules: tuple[Callable[[Node], bool], ...] = (_merge, _squeeze_permute)
        changed = any([rule(node) for node in list(module.graph.nodes) for rule in rules])
        module.graph.eliminate_dead_code()


def _reduces_nothing(node: Node) -> bool:
    if not is_call(node, *REDUCE_OPS):
        return False
    before, after = node.all_input_nodes[0].meta["val"], node.meta["val"]
    return before.dtype == after.dtype and before.numel() == after.numel()


def share_repeated(module: GraphModule) -> None:
    """Compute equal calls once, such as the same mask prepared for every layer."""
    first: dict[tuple[object, str], Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or _is_random(node):
            continue
        # A node prints as its name, which is unique in the graph.
        earlier = first.setdefault((node.target, repr((node.args, node.kwargs))), node)
        if earlier is not node:
            replace(node, earlier)


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _swap(node: Node, target: Callable[..., object], argument_: list[int]) -> None:
    node.target = target
    node.args, node.kwargs = (node.all_input_nodes[0], argument_), {}


def _permutation(node: Node) -> list[int]:
    source = node.all_input_nodes[0]
    rank = len(shape_of(source))
    if is_call(node, aten.permute.default):
        order = node.args[1]
        assert isinstance(order, list | tuple)
        return [int(str(axis)) % rank for axis in order]
    axes = list(range(rank))
    swapped = (0, 1) if is_call(node, aten.t.default) else node.args[1:3]
    if rank > 1:
        first, second = (int(str(axis)) for axis in swapped)
        axes[first], axes[second] = axes[second], axes[first]
    return axes


def _merge(node: Node) -> bool:
    """One view instead of two, one permute instead of two, none where nothing changes."""
    if not is_call(node, aten.reshape.default, aten.permute.default) or not node.users:
        return False
    source = node.all_input_nodes[0]
    if is_call(node, aten.reshape.default):
        if shape_of(source) == shape_of(node):
            replace(node, source)
            return True
        if is_call(source, aten.reshape.default):
            node.args = (source.args[0], node.args[1])
            return True
        return False
    order = _permutation(node)
    if order == sorted(order):
        replace(node, source)
        return True
    if is_call(source, aten.permute.default):
        inner = _permutation(source)
        node.args = (source.args[0], [inner[axis] for axis in order])
        return True
    return False


def _squeeze_permute(node: Node) -> bool:
    """view, permute, view: leave axes of size one out of the permute, so that the views merge."""
    if not is_call(node, aten.permute.default) or not node.users:
        return False
    source, shape = node.all_input_nodes[0], shape_of(node.all_input_nodes[0])
    lean = [axis for axis, size in enumerate(shape) if size != 1]
    neighbours = (source, *node.users)
    if len(lean) == len(shape) or not all(is_call(n, aten.reshape.default) for n in neighbours):
        return False
    kept = [axis for axis in _permutation(node) if shape[axis] != 1]
    graph = node.graph
    with graph.inserting_before(node):
        squeezed = emit(graph, aten.reshape.default, source, [shape[axis] for axis in lean])
        turned = emit(graph, aten.permute.default, squeezed, [lean.index(axis) for axis in kept])
        replace(node, emit(graph, aten.reshape.default, turned, list(shape_of(node))))
    return True

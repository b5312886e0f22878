"""Canonicalising passes: what torch.export gives -> the one graph form everything else reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edgeprune.program.attention import join_attention
from edgeprune.program.graph import (
    ATEN,
    Memo,
    ancestors,
    annotate,
    calls,
    drop_dead,
    drop_unread,
    emit,
    evaluate,
    fake_values,
    get_attribute,
    is_call,
    one_more,
    replace,
    set_tensor,
    shape,
    slice_arguments,
    value,
)
from edgeprune.program.masks import dtype_of, make_masks_additive
from edgeprune.program.repeats import (
    repeat_shared_heads,
    write_repeats_out,
    write_samples_apart,
)

CHECKS = (
    ATEN._assert_tensor_metadata,
    ATEN._assert_scalar,
    ATEN._assert_async,
    ATEN.sym_constrain_range_for_size,
    ATEN.sym_constrain_range,
)

CONSTANT = "constant_"


def canonicalise(module: fx.GraphModule, example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Bring ``module`` to canonical form in place. Running it again changes nothing."""
    memo = Memo()
    inline_wrappers(module)
    drop_checks(module)
    free_views(module)
    annotate(module, example_inputs, memo)
    write_sizes_out(module, example_inputs)
    drop_empty_parts(module)
    drop_no_ops(module)
    take_from_ends(module)
    join_batch_norm(module)
    write_rms_norm_out(module)
    write_products_as_linear(module)
    write_fillings_out(module)
    fold_constants(module)
    write_repeats_out(module)
    write_samples_apart(module)
    annotate(module, example_inputs, memo)
    join_attention(module, example_inputs)
    repeat_shared_heads(module)
    give_attention_heads(module)
    annotate(module, example_inputs, memo)
    make_masks_additive(module)
    add_to_stream(module)
    share_constants(module)
    part_shared_biases(module)
    drop_unread(module)
    annotate(module, example_inputs, memo)


def inline_wrappers(module: fx.GraphModule) -> None:
    """Splice the bodies of grad-mode wrappers into the graph (they do not matter in eval)."""
    for node in list(module.graph.nodes):
        if getattr(node.target, "__name__", "") != "wrap_with_set_grad_enabled":
            continue
        _, body, *operands = node.args
        inner = getattr(module, body.target)
        copied: dict[fx.Node, Any] = {}
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        copied.update(zip(places, operands, strict=True))
        with module.graph.inserting_before(node):
            results = module.graph.graph_copy(inner.graph, copied)
        for user in list(node.users):
            replace(user, results[user.args[1]])
        module.graph.erase_node(node)


def drop_checks(module: fx.GraphModule) -> None:
    """Erase asserts and guards: shapes are static but for the batch, which may be any."""
    for node in reversed(module.graph.nodes):
        guard = node.op == "call_module" and "guard" in str(node.target)
        if (guard or is_call(node, *CHECKS)) and not node.users:
            module.graph.erase_node(node)


def drop_no_ops(module: fx.GraphModule) -> None:
    """Erase what changes nothing in eval: dropout, same-dtype casts, copies, same-shape views."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and _is_no_op(node):
            replace(node, node.args[0])


def _is_no_op(node: fx.Node) -> bool:
    if is_call(node, ATEN.dropout, ATEN.feature_dropout):
        return not node.args[2]
    if is_call(node, ATEN.contiguous, ATEN.clone, ATEN.alias, ATEN.lift_fresh_copy):
        return True
    if is_call(node, ATEN.pad, ATEN.constant_pad_nd):
        return not any(node.args[1])
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return False
    before, after = value(source), value(node)
    if before is None or after is None:
        return False
    if is_call(node, ATEN.to, ATEN._to_copy, ATEN.type_as):
        return before.dtype == after.dtype and before.device == after.device
    if is_call(node, ATEN.reshape, ATEN.expand, ATEN.slice, ATEN._unsafe_view):
        return before.shape == after.shape
    return False


def drop_empty_parts(module: fx.GraphModule) -> None:
    """Join only what has entries: a cache of keys and values starts without any."""
    for node in calls(module.graph, ATEN.cat):
        parts = [part for part in node.args[0] if 0 not in shape(part)]
        if not any(dtype_of(part) == dtype_of(node) for part in parts):
            continue
        node.update_arg(0, parts)
        if len(parts) == 1:
            replace(node, parts[0])


def free_views(module: fx.GraphModule) -> None:
    """Any view as ``reshape``: the memory layout that a view demands depends on who runs it."""
    for node in calls(module.graph, ATEN.view, ATEN._unsafe_view):
        if not is_call(node, ATEN.view.dtype):
            node.target = ATEN.reshape.default


def write_sizes_out(module: fx.GraphModule, example_inputs: tuple[torch.Tensor, ...]) -> None:
    """One form for calls with sizes: flatten as ``reshape``, any split as split_with_sizes."""
    for node, sizes in _relative_shapes(module, example_inputs).items():
        node.target, node.args = ATEN.reshape.default, (node.args[0], sizes)
    for node in calls(module.graph, ATEN.split, ATEN.chunk):
        axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        sizes = [int(part.shape[axis]) for part in node.meta["val"]]
        node.target, node.args = ATEN.split_with_sizes.default, (node.args[0], sizes, axis)
        node.kwargs = {}


def _relative_shapes(
    module: fx.GraphModule, example_inputs: tuple[torch.Tensor, ...]
) -> dict[fx.Node, list[int]]:
    """The shapes that (un)flatten gives, -1 in place of the size that follows the batch."""
    found = {node: shape(node) for node in calls(module.graph, ATEN.flatten, ATEN.unflatten)}
    if not found:
        return {}
    grown = fake_values(module, one_more(example_inputs))
    return {
        node: [one if one == two else -1 for one, two in zip(sizes, grown[node].shape, strict=True)]
        for node, sizes in found.items()
    }


def take_from_ends(module: fx.GraphModule) -> None:
    """Write a slice out of the middle as two, and a split that is read in part as slices.

    Then every slice starts at 0 or ends at the end, and its place follows from sizes alone.
    """
    for node in calls(module.graph, ATEN.split_with_sizes):
        source, sizes, axis = (*node.args, node.kwargs.get("dim", 0))[:3]
        if {part.args[1] for part in node.users if part.users} != set(range(len(sizes))):
            for part in list(node.users):
                start = sum(sizes[: part.args[1]])
                part.target = ATEN.slice.Tensor
                part.args = (source, axis, start, start + sizes[part.args[1]])
    for node in calls(module.graph, ATEN.slice):
        axis, start, end, step = slice_arguments(node)
        if step != 1 or not all(isinstance(each, int | None) for each in (start, end)):
            continue
        source = node.args[0]
        size = shape(source)[axis]
        taken = range(size)[slice(start, end)]
        if taken and taken.start > 0 and taken.stop < size:
            with module.graph.inserting_before(node):
                first = module.graph.call_function(node.target, (source, axis, 0, taken.stop))
            first.meta["val"] = node.target(value(source), axis, 0, taken.stop)
            source = first
        node.args = (source, axis, taken.start, taken.stop)


def join_batch_norm(module: fx.GraphModule) -> None:
    """One form for a batch norm: its functional variant has two more outputs that nothing reads."""
    for node in calls(module.graph, ATEN._native_batch_norm_legit_no_training):
        *tensors, momentum, epsilon = node.args
        node.target = ATEN.batch_norm.default
        node.args = (*tensors, False, momentum, epsilon, False)
        for output in list(node.users):
            replace(output, node)


def write_rms_norm_out(module: fx.GraphModule) -> None:
    """One form for a root mean square norm: x / sqrt(mean(x^2) + eps) * weight.

    Both runtimes decompose the operator into the same calls.
    """
    call = module.graph.call_function
    for node in calls(module.graph, ATEN.rms_norm):
        x, sizes, weight, eps = (*node.args, None, None)[:4]
        found = value(node)
        assert found is not None
        eps = torch.finfo(found.dtype).eps if eps is None else eps
        with module.graph.inserting_before(node):
            square = call(ATEN.pow.Tensor_Scalar, (x, 2))
            mean = call(ATEN.mean.dim, (square, list(range(-len(sizes), 0)), True))
            scale = call(ATEN.rsqrt.default, (call(ATEN.add.Tensor, (mean, eps)),))
            result = call(ATEN.mul.Tensor, (x, scale))
            if weight is not None:
                result = call(ATEN.mul.Tensor, (result, weight))
        result.meta["val"] = found
        replace(node, result)


def write_products_as_linear(module: fx.GraphModule) -> None:
    """Write ``bias + x @ weight`` as a linear layer; its weight is stored the other way round."""
    products: dict[str, list[fx.Node]] = {}
    for node in calls(module.graph, ATEN.addmm):
        products.setdefault(str(node.args[2].target), []).append(node)
    for path, found in products.items():
        readers = [n.users for n in module.graph.nodes if n.op == "get_attr" and n.target == path]
        only = {user for users in readers for user in users} == set(found)
        if not only or not all(map(_is_product, found)):
            continue
        weight = get_attribute(module, path)
        turned = weight.detach().t().contiguous()
        set_tensor(module, path, torch.nn.Parameter(turned, requires_grad=weight.requires_grad))
        for source in {node.args[2] for node in found}:
            source.meta["val"] = source.meta["val"].t()
        for node in found:
            _write_linear(module, node)


def _is_product(node: fx.Node) -> bool:
    bias, x, weight = node.args
    distinct = weight not in (bias, x)
    return not node.kwargs and weight.op == "get_attr" and distinct and len(shape(bias)) == 1


def _write_linear(module: fx.GraphModule, node: fx.Node) -> None:
    """Rows that were joined for the product stay apart."""
    bias, x, weight = node.args
    source = x.args[0] if is_call(x, ATEN.reshape) else x
    apart = (*shape(source)[:-1], shape(node)[-1])
    with module.graph.inserting_before(node):
        if shape(source)[-1] == shape(x)[-1]:
            product = emit(module.graph, ATEN.linear.default, source, weight, bias)
            for reader in list(node.users):
                if is_call(reader, ATEN.reshape) and shape(reader) == apart:
                    replace(reader, product)
        if node.users:
            product = emit(module.graph, ATEN.linear.default, x, weight, bias)
    replace(node, product)


def give_attention_heads(module: fx.GraphModule) -> None:
    """Write attention without a head dimension as attention with one head."""
    for node in calls(module.graph, ATEN.scaled_dot_product_attention):
        if len(shape(node)) != 3:
            continue
        with module.graph.inserting_before(node):
            for source in dict.fromkeys(node.all_input_nodes):
                if len(shape(source)) == 3:
                    with_head = module.graph.call_function(ATEN.unsqueeze.default, (source, 1))
                    node.replace_input_with(source, with_head)
        with module.graph.inserting_after(node):
            without = module.graph.call_function(ATEN.squeeze.dim, (node, 1))
        node.replace_all_uses_with(
            without, delete_user_cb=lambda user, new=without: user is not new
        )


def write_fillings_out(module: fx.GraphModule) -> None:
    """Write ``x.new_zeros(sizes)`` without the x that it takes its type from."""
    fillings = {ATEN.new_zeros.default: 0, ATEN.new_ones.default: 1, ATEN.new_full.default: None}
    for node in calls(module.graph, *fillings):
        sizes, *given = node.args[1:]
        filling = fillings[node.target]
        node.args = (sizes, *given) if filling is None else (sizes, filling)
        node.kwargs = {"dtype": dtype_of(node)}
        node.target = ATEN.full.default


def fold_constants(module: fx.GraphModule) -> None:
    """Compute once what does not depend on the inputs' values, and keep it as a buffer.

    What depends on the batch size alone (a positional table expanded over the batch) becomes a
    buffer with batch 1, which broadcasts.
    """
    constant: set[fx.Node] = set()
    batch_only: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            constant.add(node)
        elif is_call(node, ATEN.sym_size):
            batch_only.add(node)
        elif node.op == "call_function" and not _is_random(node):
            sources = set(node.all_input_nodes)
            if sources <= constant:
                constant.add(node)
            elif sources <= constant | batch_only:
                batch_only.add(node)
    known = constant | batch_only
    for node in reversed(module.graph.nodes):
        if node not in known or node.op != "call_function" or known.issuperset(node.users):
            continue
        folded = None if value(node) is None else _fold(module, node)
        if folded is None:  # then what it is computed from may still be
            known.discard(node)
        else:
            _put_constant(module, node, folded)
    drop_dead(module.graph)


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def _fold(module: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """The node's value if it is the same for every batch size (with batch 1), else None."""
    needed = ancestors(node)
    batches = [n for n in needed if is_call(n, ATEN.sym_size)]
    with torch.no_grad():
        two, three = (
            evaluate(module, node, dict.fromkeys(batches, size), needed) for size in (2, 3)
        )
    if not isinstance(two, torch.Tensor):
        return None
    if two.shape == three.shape:
        return two.contiguous() if torch.equal(two, three) else None
    varies = [dim for dim in range(two.ndim) if two.shape[dim] != three.shape[dim]]
    if len(varies) != 1 or two.shape[varies[0]] != 2 or not _broadcasts(node):
        return None
    first = two.narrow(varies[0], 0, 1)
    return first.contiguous() if torch.equal(first.expand_as(two), two) else None


def _broadcasts(node: fx.Node) -> bool:
    """Whether every reader accepts a batch of 1 in place of the full batch."""
    elementwise = (ATEN.add, ATEN.sub, ATEN.mul, ATEN.div, ATEN.where, ATEN.__and__)
    for user in node.users:
        if is_call(user, ATEN.scaled_dot_product_attention) and node not in user.args[:3]:
            continue
        tensors = [n for n in user.all_input_nodes if n is not node]
        if not is_call(user, *elementwise) or not any(shape(n) == shape(user) for n in tensors):
            return False
    return True


def _put_constant(module: fx.GraphModule, node: fx.Node, tensor: torch.Tensor) -> None:
    name = f"{CONSTANT}{node.name}"
    set_tensor(module, name, tensor.detach().clone())
    with module.graph.inserting_before(node):
        attribute = module.graph.get_attr(name)
    attribute.meta["val"] = tensor
    node.replace_all_uses_with(attribute)


def add_to_stream(module: fx.GraphModule) -> None:
    """Write x + (f(x) + g(x)) as (x + f(x)) + g(x): each branch can then leave alone."""
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    todo = list(calls(module.graph, ATEN.add.Tensor))
    for node in todo:
        found = _stream_and_branches(node)
        if found is None:
            continue
        stream, branches = found
        first, second = sorted(branches, key=order.__getitem__)
        with module.graph.inserting_before(node):
            inner = emit(module.graph, ATEN.add.Tensor, stream, first)
        order[inner] = order[node]
        node.args = (inner, second)
        todo.append(inner)
    drop_dead(module.graph)


def _stream_and_branches(node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    if node.kwargs or not all(isinstance(each, fx.Node) for each in node.args):
        return None
    for stream, total in (node.args, node.args[::-1]):
        summed = is_call(total, ATEN.add.Tensor) and len(total.users) == 1 and not total.kwargs
        if not summed or not all(isinstance(each, fx.Node) for each in total.args):
            continue
        same = all(shape(each) == shape(node) for each in (stream, *total.args))
        if same and all(each is not stream and stream in ancestors(each) for each in total.args):
            return stream, total.args
    return None


def part_shared_biases(module: fx.GraphModule) -> None:
    """Let each attention read a bias table under a name of its own, so that its heads are its own.

    The names share their storage; surgery then cuts each by itself.
    """
    taken: set[object] = set()
    for number, node in enumerate(calls(module.graph, ATEN.scaled_dot_product_attention)):
        mask = node.args[3] if len(node.args) > 3 else None
        if isinstance(mask, fx.Node) and shape(node)[1] > 1:
            with module.graph.inserting_before(node):
                node.update_arg(3, _own(module, mask, number, taken))


def _own(module: fx.GraphModule, node: fx.Node, number: int, taken: set[object]) -> fx.Node:
    """The node, or a copy of it if another attention reads its heads."""
    table = node.op == "get_attr" and not isinstance(
        get_attribute(module, str(node.target)), torch.nn.Parameter
    )
    has_heads = len(shape(node)) == 4 and shape(node)[1] > 1
    if not has_heads or not (table or is_call(node, ATEN.add.Tensor, ATEN.mul.Tensor)):
        return node
    identity = node.target if table else node
    if identity not in taken:
        taken.add(identity)
        with module.graph.inserting_before(node):
            for source in node.all_input_nodes:
                node.replace_input_with(source, _own(module, source, number, taken))
        return node
    sources = {each: _own(module, each, number, taken) for each in node.all_input_nodes}
    copy = module.graph.node_copy(node, sources.__getitem__)
    if table:
        copy.target = f"{node.target}_of_{number}"
        set_tensor(module, copy.target, get_attribute(module, str(node.target)))
    return copy


def share_constants(module: fx.GraphModule) -> None:
    """Let equal folded constants (one rotary table per layer) be one buffer."""
    first: dict[tuple[object, ...], str] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith(CONSTANT):
            tensor = get_attribute(module, node.target)
            content = (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
            node.target = first.setdefault(content, node.target)

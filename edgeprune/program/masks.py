"""Attention masks: whatever code built them, one additive float mask comes out."""

from __future__ import annotations

import math

import torch
from torch import fx

from edgeprune.program.graph import (
    ATEN,
    MASKED,
    ancestors,
    annotate,
    calls,
    evaluate,
    get_attribute,
    is_call,
    set_tensor,
    shape,
    value,
)

# Random inputs on which a mask's structure is checked. Each decides every (query, key) pair of
# every example, so 8 draws leave no room for a structure that is not really there.
PROBES = 8


def make_masks_additive(module: fx.GraphModule, example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Give every ``scaled_dot_product_attention`` one additive mask [batch|1, 1, 1|q, k] or none.

    A boolean mask is a function of the inputs. It is probed: if it equals (a fixed pattern) and
    (input[b, key] != 0), it is rebuilt in that short form and the mask-building code falls away.
    ``is_causal`` becomes a fixed additive mask, so that token selection can cut it like any table.
    A float mask that may hold -inf is clamped.
    """
    made: dict[tuple[fx.Node | None, bool], fx.Node | None] = {}
    for node in calls(module.graph, ATEN.scaled_dot_product_attention):
        mask = _argument(node, "attn_mask", 3)
        causal = bool(_argument(node, "is_causal", 5) or False)
        boolean = mask is not None and _dtype(mask) == torch.bool
        if not (boolean or causal or (mask is not None and _may_be_infinite(module, mask))):
            continue
        key = (mask, causal)
        if key not in made:
            dtype = _dtype(node)
            with module.graph.inserting_before(node):
                if causal:
                    made[key] = _causal(module, node)
                elif boolean:
                    made[key] = _additive(module, mask, dtype)
                else:
                    made[key] = module.graph.call_function(ATEN.clamp_min.default, (mask, MASKED))
            annotate(module, example_inputs)
        _set_mask(node, made[key])


def _argument(node: fx.Node, name: str, position: int) -> object:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else None


def _set_mask(node: fx.Node, mask: fx.Node | None) -> None:
    kwargs = {k: v for k, v in node.kwargs.items() if k == "scale"}
    if len(node.args) > 6:
        kwargs["scale"] = node.args[6]
    node.args = (*node.args[:3], mask)
    node.kwargs = kwargs


def _constant(module: fx.GraphModule, name: str, keep: torch.Tensor, dtype: torch.dtype) -> fx.Node:
    """A fixed additive mask: 0 where ``keep``, MASKED elsewhere."""
    tensor = torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, MASKED)
    set_tensor(module, name, tensor)
    node = module.graph.get_attr(name)
    node.meta["val"] = tensor
    return node


def _causal(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    queries, keys = shape(node.args[0])[-2], shape(node.args[1])[-2]
    keep = torch.ones(queries, keys, dtype=torch.bool).tril()[None, None]
    return _constant(module, f"mask_causal_{queries}_{keys}", keep, _dtype(node))


def _additive(module: fx.GraphModule, mask: fx.Node, dtype: torch.dtype) -> fx.Node | None:
    """The additive form of a boolean mask; None when it never masks anything."""
    graph = module.graph
    found = probe(module, mask)
    if found is None:
        number = graph.call_function(ATEN.to.dtype, (mask, dtype))
        minus = graph.call_function(ATEN.sub.Tensor, (number, 1.0))
        return graph.call_function(ATEN.mul.Tensor, (minus, -MASKED))
    source, fixed = found
    table = None if bool(fixed.all()) else _constant(module, f"mask_{mask.name}", fixed, dtype)
    if source is None:
        return table
    real = graph.call_function(ATEN.ne.Scalar, (source, 0))
    number = graph.call_function(ATEN.to.dtype, (real, dtype))
    minus = graph.call_function(ATEN.sub.Tensor, (number, 1.0))
    scaled = graph.call_function(ATEN.mul.Tensor, (minus, -MASKED))
    rows = graph.call_function(ATEN.unsqueeze.default, (scaled, 1))
    padding = graph.call_function(ATEN.unsqueeze.default, (rows, 1))
    if table is None:
        return padding
    return graph.call_function(ATEN.minimum.default, (padding, table))


def _may_be_infinite(module: fx.GraphModule, mask: fx.Node) -> bool:
    """Whether a float mask is made of -inf, or of numbers that the caller gives."""
    if is_call(mask, ATEN.clamp_min):
        return False
    for node in ancestors(mask):
        if node.op == "get_attr":
            table = get_attribute(module, node.target)
            if table.is_floating_point() and not bool(table.isfinite().all()):
                return True
        given = node.op == "placeholder" and _dtype(node).is_floating_point
        if given or any(arg == -math.inf for arg in node.args if isinstance(arg, float)):
            return True
    return False


def probe(module: fx.GraphModule, mask: fx.Node) -> tuple[fx.Node | None, torch.Tensor] | None:
    """What a boolean mask [batch|1, heads|1, q, k] computes, found by running it.

    Returns:
        (source, fixed) with mask[b, h, i, j] == fixed[0, 0, i, j] and (source[b, j] != 0), source
        a graph input [batch, k] or None; or None when the mask is something else.
    """
    needed = ancestors(mask)
    inputs = [n for n in needed if n.op == "placeholder" and value(n) is not None]
    sources = [n for n in inputs if _feeds_values(n, needed)]
    if len(sources) > 1 or len(shape(mask)) != 4:
        return None
    source = sources[0] if sources else None
    if source is not None and shape(source) != (shape(mask)[0], shape(mask)[3]):
        return None
    batch = shape(inputs[0])[0] if inputs else 1
    generator = torch.Generator().manual_seed(0)

    def run(values: torch.Tensor | None) -> torch.Tensor:
        given = {n: values if n is source else torch.zeros_like(_real(n)) for n in inputs}
        return evaluate(module, mask, given, needed)

    def ones() -> torch.Tensor | None:
        return None if source is None else torch.ones_like(_real(source))

    fixed = run(ones())[:1, :1]
    for _ in range(PROBES):
        values, expected = ones(), fixed
        if source is not None:
            draw = torch.randint(0, 2, shape(source), generator=generator)
            values = draw.to(_real(source).dtype)
            expected = fixed & draw.bool()[:, None, None, :]
        result = run(values)
        if not torch.equal(result, expected.expand(result.shape)):
            return None
    return source, fixed.expand(1, 1, *fixed.shape[2:]).clone() if batch else fixed


def _dtype(node: fx.Node) -> torch.dtype:
    found = value(node)
    assert found is not None
    return found.dtype


def _real(node: fx.Node) -> torch.Tensor:
    """An ordinary zero tensor with the node's shape and dtype."""
    found = value(node)
    assert found is not None
    return torch.zeros(tuple(int(size) for size in found.shape), dtype=found.dtype)


def _feeds_values(node: fx.Node, needed: set[fx.Node]) -> bool:
    """Whether a mask reads the input's values, not only its batch size."""
    return any(user in needed and user.target is not ATEN.sym_size.int for user in node.users)

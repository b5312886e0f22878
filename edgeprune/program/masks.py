"""Attention masks: whatever code built them, one additive float mask comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import fx

from edgeprune.program.graph import (
    ATEN,
    MASKED,
    ancestors,
    calls,
    emit,
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


# What a score must be below for softmax to give it nothing: exp(-1e4) is 0 in double precision.
NEVER = -1e4


def make_masks_additive(module: fx.GraphModule) -> None:
    """Give every ``scaled_dot_product_attention`` one additive mask [batch|1, 1, 1|q, k] or none.

    A boolean mask is a function of the inputs. It is probed: if it equals (a fixed pattern) and
    (input[b, key] != 0), it is rebuilt in that short form and the mask-building code falls away.
    ``is_causal`` becomes a fixed additive mask, so that token selection can cut it like any table.
    A float mask that blocks by filling becomes a sum; one that may hold -inf is clamped.
    """
    made: dict[tuple[fx.Node | None, bool], fx.Node | None] = {}
    blocks = Blocks(module)
    for node in calls(module.graph, ATEN.scaled_dot_product_attention):
        mask = _argument(node, "attn_mask", 3)
        causal = bool(_argument(node, "is_causal", 5) or False)
        if not (isinstance(mask, fx.Node) or causal):
            continue
        key = (mask, causal)
        if key not in made:
            with module.graph.inserting_before(node):
                if causal:
                    made[key] = _causal(module, node)
                elif dtype_of(mask) == torch.bool:
                    made[key] = blocks.additive(mask, dtype_of(node))
                else:
                    made[key] = _finite(module, blocks.summed(mask))
        if made[key] is not mask:
            _set_mask(node, made[key])


class Blocks:
    """Boolean masks as additive ones, each made once.

    Nodes are put in at the graph's insertion point.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.made: dict[fx.Node, fx.Node | None] = {}

    def additive(self, keep: fx.Node, dtype: torch.dtype) -> fx.Node | None:
        """0 where ``keep``, MASKED elsewhere; None when it never blocks anything."""
        if keep not in self.made:
            self.made[keep] = _additive(self.module, keep, dtype)
        return self.made[keep]

    def summed(self, mask: fx.Node) -> fx.Node | None:
        """A float mask with sums in place of fills; itself where it has none."""
        terms = [*_terms(self.module, mask)]
        if not any(dtype_of(term) == torch.bool for term in terms):
            return mask
        total = None
        for term in terms:
            if dtype_of(term) == torch.bool:
                term = self.additive(term, dtype_of(mask))
            if total is None or term is None:
                total = total or term
            else:
                total = emit(self.module.graph, ATEN.add.Tensor, total, term)
        return total


def _terms(module: fx.GraphModule, mask: fx.Node) -> Iterator[fx.Node]:
    """What a float mask is the sum of; a fill gives what it fills, and a boolean one."""
    if is_call(mask, ATEN.add.Tensor) and all(isinstance(n, fx.Node) for n in mask.args):
        for each in mask.args:
            yield from _terms(module, each)
        return
    fill = read_fill(module, mask)
    if fill is None:
        yield mask
        return
    inner, keep = fill
    if constant_number(module, inner) != 0.0:
        yield from _terms(module, inner)
    yield keep


def read_fill(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(scores, where they count) of a call that fills the others with a number far below all."""
    if is_call(node, ATEN.masked_fill):
        inner, blocked, number = node.args
        keep = None
    elif is_call(node, ATEN.where.ScalarOther, ATEN.where.self):
        keep, inner, number = node.args
    else:
        return None
    low = constant_number(module, number)
    if low is None or low > NEVER or not isinstance(inner, fx.Node):
        return None
    return inner, keep or _negated(blocked)


def _negated(blocked: fx.Node) -> fx.Node:
    if is_call(blocked, ATEN.logical_not, ATEN.bitwise_not):
        return blocked.args[0]
    for user in blocked.users:
        if is_call(user, ATEN.logical_not):
            return user
    with blocked.graph.inserting_after(blocked):
        return emit(blocked.graph, ATEN.logical_not.default, blocked)


def constant_number(module: fx.GraphModule, given: object) -> float | None:
    """A literal number, or the one that a constant without dimensions holds; None otherwise."""
    if isinstance(given, fx.Node) and given.op == "get_attr" and shape(given) == ():
        tensor = get_attribute(module, str(given.target))
        given = None if isinstance(tensor, torch.nn.Parameter) else tensor.item()
    return float(given) if isinstance(given, int | float) else None


def _finite(module: fx.GraphModule, mask: fx.Node | None) -> fx.Node | None:
    if mask is None or not _may_be_infinite(module, mask):
        return mask
    if mask.op == "get_attr":
        table = get_attribute(module, str(mask.target)).clamp(min=MASKED)
        return _table(module, f"{mask.target}_finite", table)
    return emit(module.graph, ATEN.clamp_min.default, mask, MASKED)


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
    return _table(module, name, torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, MASKED))


def _table(module: fx.GraphModule, name: str, tensor: torch.Tensor) -> fx.Node:
    set_tensor(module, name, tensor)
    node = module.graph.get_attr(name)
    node.meta["val"] = tensor
    return node


def _causal(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    queries, keys = shape(node.args[0])[-2], shape(node.args[1])[-2]
    keep = torch.ones(queries, keys, dtype=torch.bool).tril()[None, None]
    return _constant(module, f"mask_causal_{queries}_{keys}", keep, dtype_of(node))


def _additive(module: fx.GraphModule, mask: fx.Node, dtype: torch.dtype) -> fx.Node | None:
    """The additive form of a boolean mask; None when it never masks anything."""
    graph = module.graph
    found = probe(module, mask)
    if found is None:
        number = emit(graph, ATEN.to.dtype, mask, dtype)
        minus = emit(graph, ATEN.sub.Tensor, number, 1.0)
        return emit(graph, ATEN.mul.Tensor, minus, -MASKED)
    source, fixed = found
    table = None if bool(fixed.all()) else _constant(module, f"mask_{mask.name}", fixed, dtype)
    if source is None:
        return table
    real = emit(graph, ATEN.ne.Scalar, source, 0)
    number = emit(graph, ATEN.to.dtype, real, dtype)
    minus = emit(graph, ATEN.sub.Tensor, number, 1.0)
    scaled = emit(graph, ATEN.mul.Tensor, minus, -MASKED)
    rows = emit(graph, ATEN.unsqueeze.default, scaled, 1)
    padding = emit(graph, ATEN.unsqueeze.default, rows, 1)
    if table is None:
        return padding
    return emit(graph, ATEN.minimum.default, padding, table)


def _may_be_infinite(module: fx.GraphModule, mask: fx.Node) -> bool:
    """Whether a float mask is made of what may add up to -inf, or of what the caller gives."""
    if is_call(mask, ATEN.clamp_min):
        return False
    for node in ancestors(mask):
        if node.op == "get_attr":
            table = get_attribute(module, node.target)
            if table.is_floating_point() and not bool((table >= MASKED).all()):
                return True
        given = node.op == "placeholder" and dtype_of(node).is_floating_point
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


def dtype_of(node: fx.Node) -> torch.dtype:
    """The type of a tensor node's entries."""
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

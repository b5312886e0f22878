"""Input lengths: dimensions of an input that can be made smaller without changing what it means.

An image's resolution, a recording's time, a cloud's points: all that reads such a dimension treats
its positions alike. It is slid over, reduced, attended to, or worked on position by position, and
no weight holds a number for each position but for a positional table, which is resized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from edgeprune.errors import InputError
from edgeprune.program.graph import ATEN, get_attribute, is_call, shape, value
from edgeprune.sites.atoms import Dim
from edgeprune.sites.flow import Dims, Flow, describe
from edgeprune.sites.rules.convolution import CONVOLUTIONS, TRANSPOSED
from edgeprune.sites.site import unique_name
from edgeprune.sites.sizes import ADAPTIVE, SLIDING, setting, sizes_at, space

STEPS_TRIED = 1024
"""A recording's samples may be many, and no operator moves on by more at once."""

ALIKE = (
    *(ATEN.to, ATEN._to_copy, ATEN.where, ATEN.masked_fill, ATEN.expand_as, ATEN.detach),
    *(ATEN.linear, ATEN.addmm, ATEN.matmul, ATEN.mm, ATEN.bmm, ATEN.scaled_dot_product_attention),
    *(ATEN.softmax, ATEN._softmax, ATEN.log_softmax, ATEN.layer_norm, ATEN.rms_norm),
    *(ATEN.batch_norm, ATEN.group_norm, ATEN.instance_norm),
    *(ATEN.sum, ATEN.mean, ATEN.amax, ATEN.amin, ATEN.max, ATEN.min, ATEN.var, ATEN.std),
    ATEN.logsumexp,
    *(ATEN.reshape, ATEN._unsafe_view, ATEN.flatten, ATEN.squeeze, ATEN.unsqueeze, ATEN.expand),
    *(ATEN.transpose, ATEN.permute, ATEN.t, ATEN.mT, ATEN.movedim, ATEN.cat, ATEN.stack),
)
"""Treat all positions alike, whatever they do with them."""

TAKES = (ATEN.slice, ATEN.select, ATEN.split_with_sizes, ATEN.unbind)
"""Take entries by their place: all positions together, or none of them, may be among them."""


@dataclass(frozen=True)
class InputLength:
    """A dimension of the inputs (two for an image) that can be made smaller.

    Attributes:
        name: of the site, ``pixel_values.resolution``.
        axis: "resolution", "time" or "points".
        dims: what shrinks; of an image height, then width, which keeps its share.
        step: distance from the full size to the next smaller one that is possible.
        why_not: why no smaller size is possible; None when one is.
    """

    name: str
    axis: str
    dims: Dims
    step: int
    why_not: str | None

    @property
    def size(self) -> int:
        """The full size: entries of the (first) dimension."""
        return self.dims[0].size

    def places(self, flow: Flow) -> Iterator[tuple[int, dict[int, Dim]]]:
        """(number of an input, {its dimension: what of ``dims`` it is}) wherever they are."""
        whole = {dim.root for dim in self.dims}
        for number, node in enumerate(_inputs(flow)):
            found = {i: dim.root for i, dim in enumerate(flow.of(node)) if dim.root in whole}
            if found:
                yield number, found


def find_input_lengths(flow: Flow) -> tuple[InputLength, ...]:
    """Those of every input of numbers, in order; a word's place in a text is none of them."""
    found: list[InputLength] = []
    for node, name in zip(_inputs(flow), flow.program.input_names, strict=True):
        taken = {dim.root for each in found for dim in each.dims}
        kind = value(node)
        if kind is None or not kind.is_floating_point():
            continue
        reaches = [
            _Reach(flow, dim) for dim in flow.of(node)[1:] if dim.size > 1 and dim.root not in taken
        ]
        for group in _grouped(flow, reaches):
            length = _length(flow, group, name)
            if length is not None:
                names = {each.name for each in found}
                found.append(replace(length, name=unique_name(length.name, names)))
    return tuple(found)


class _Reach:
    """All that is made from one dimension of an input.

    Attributes:
        touched: the atoms that follow its size.
        slid: whether any operator looks at several neighbours of it at once.
    """

    def __init__(self, flow: Flow, dim: Dim) -> None:
        self.dim = dim
        self.touched = set(_following(dim))
        self.slid = False
        for node in flow.program.module.graph.nodes:
            if is_call(node, *SLIDING) and node not in flow.unknown:
                self._follow(flow, node)

    def _follow(self, flow: Flow, node: fx.Node) -> None:
        before, after = flow.of(node.args[0]), flow.of(node)
        for axis in space(flow, node):
            if self.touches(before[axis]):
                self.slid |= _slides(node, axis)
                if after[axis].size > 1 and not is_call(node, *ADAPTIVE):
                    self.touched |= set(_following(after[axis]))

    def touches(self, dim: Dim) -> bool:
        """Whether the dimension holds an atom that follows the size."""
        return any(leaf in self.touched for leaf in dim.leaves())


def _following(dim: Dim) -> Iterator[Dim]:
    """The atoms that follow a dimension's size: tiles and windows keep theirs."""
    found = dim.root
    if found.kind == "product":
        yield from _following(found.parts[0])
    else:
        yield from found.leaves()


def _slides(node: fx.Node, axis: int) -> bool:
    """Whether a sliding operator mixes neighbours along a dimension, but does not reduce it."""
    if is_call(node, *CONVOLUTIONS, *TRANSPOSED):
        return shape(node.args[1])[axis] > 1 or setting(node, 3, axis, 1) > 1
    return shape(node)[axis] > 1


def _inputs(flow: Flow) -> list[fx.Node]:
    return [node for node in flow.program.module.graph.nodes if node.op == "placeholder"]


def _grouped(flow: Flow, reaches: Sequence[_Reach]) -> list[tuple[_Reach, ...]]:
    """Height with width, where they are slid over or flattened together; others alone."""
    groups: list[tuple[_Reach, ...]] = []
    left = list(reaches)
    while left:
        last = left.pop()
        if left and left[-1].slid == last.slid and _meet(flow, left[-1], last):
            groups.insert(0, (left.pop(), last))
        else:
            groups.insert(0, (last,))
    return groups


def _meet(flow: Flow, one: _Reach, two: _Reach) -> bool:
    """Whether an operator slides over both, or makes one dimension of both."""
    for node, outputs in flow.dims.items():
        dims = outputs if isinstance(outputs, tuple) else ()
        if any(one.touches(dim) and two.touches(dim) for dim in dims):
            return True
        if is_call(node, *SLIDING) and node not in flow.unknown and len(dims) > 3:
            before = flow.of(node.args[0])
            if one.touches(before[-2]) and two.touches(before[-1]):
                return one.slid and two.slid
    return False


def _length(flow: Flow, group: tuple[_Reach, ...], name: str) -> InputLength | None:
    """The site of one dimension or two; None where nothing says that it is a length."""
    touched = set().union(*(reach.touched for reach in group))
    dims = tuple(reach.dim for reach in group)
    slid = group[0].slid
    tabled = any(_carries(held, touched) for held in flow.tensors.values())
    axis = "resolution" if len(group) > 1 else "time" if slid or tabled else "points"
    length = InputLength(f"{name}.{axis}", axis, dims, 1, _forbidden(flow, touched, dims))
    if length.why_not is None:
        step, why_not = _step(flow, length)
        return replace(length, step=step, why_not=why_not)
    attended = any(role == "tokens" and _carries((dim,), touched) for role, dim in flow.roles)
    return length if slid or attended else None


def _step(flow: Flow, length: InputLength) -> tuple[int, str | None]:
    """The smallest step down that is possible, or what forbids even the first."""
    first: str | None = None
    for size in range(length.size - 1, max(0, length.size - 1 - STEPS_TRIED), -1):
        try:
            sizes_at(flow, length.dims, size)
        except InputError as error:
            first = first or str(error)
        else:
            return length.size - size, None
    return 1, first or "it has one position"


def _forbidden(flow: Flow, touched: set[Dim], dims: Dims) -> str | None:
    """The first thing in the graph that does not treat all positions alike."""
    whole = {dim.root for dim in dims}
    for node in flow.program.module.graph.nodes:
        carried = [n for n in node.all_input_nodes if _carries(_all_dims(flow, n), touched)]
        if node.op == "placeholder":
            mine = [dim for dim in flow.of(node) if _carries((dim,), touched)]
            if any(dim.root not in whole for dim in mine):
                return f"the input {node.name} holds it in another layout"
        elif node.op == "get_attr":
            reason = _fixed_table(flow, node, touched)
            if reason:
                return reason
        elif node.op == "output" and carried:
            return f"the output has an entry for each position of {carried[0].name}"
        elif carried:
            reason = _by_place(flow, node, touched)
            if reason:
                return reason
    return None


def _fixed_table(flow: Flow, node: fx.Node, touched: set[Dim]) -> str | None:
    """Why a weight or constant cannot follow the size: it is no positional table."""
    dims = flow.of(node)
    if not _carries(dims, touched):
        return None
    held = [leaf for dim in dims for leaf in dim.leaves() if leaf in touched]
    tensor = get_attribute(flow.program.module, str(node.target))
    if len(held) > len(set(held)) or not tensor.is_floating_point():
        return f"{node.target} holds a number for each pair of positions"
    for reader in node.users:
        if not is_call(reader, ATEN.add):
            return f"{describe(reader)} reads {node.target}, which holds numbers for each position"
    features = {leaf for dim in dims for leaf in dim.leaves() if leaf.size > 1} - touched
    if not all(_has_weights(flow, leaf, str(node.target)) for leaf in features):
        return f"{node.target} holds numbers for each position, and is no positional table"
    return None


def _has_weights(flow: Flow, leaf: Dim, table: str) -> bool:
    """Whether another weight than a table has the atom: then it is one of the stream's features."""
    return any(
        isinstance(get_attribute(flow.program.module, path), torch.nn.Parameter)
        for path, _ in flow.holders.get(leaf, ())
        if path != table
    )


def _by_place(flow: Flow, node: fx.Node, touched: set[Dim]) -> str | None:
    """Why an operator that reads positions does not treat them alike; None if it does."""
    if node in flow.unknown:
        return f"no rule for {describe(node)}, which reads it"
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    if pointwise or is_call(node, *ALIKE, *SLIDING, ATEN.sym_size):
        return None
    if is_call(node, ATEN.embedding):
        return f"{describe(node)} reads symbols, which have no size between two sizes"
    if not isinstance(node.target, torch._ops.OpOverload):  # one of an operator's outputs
        return None
    if is_call(node, *TAKES) and _takes_all_or_none(flow, node, touched):
        return None
    return f"{describe(node)} reads some positions by their place"


def _takes_all_or_none(flow: Flow, node: fx.Node, touched: set[Dim]) -> bool:
    dims = flow.of(node.args[0])
    axis = 0 if len(node.args) < 2 else node.args[1]
    if is_call(node, ATEN.split_with_sizes):
        axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    assert isinstance(axis, int)
    dim = dims[axis]
    if not _carries((dim,), touched):
        return True
    if is_call(node, ATEN.select):
        return _first_or_last(dim, node.args[2], touched)
    if is_call(node, ATEN.slice) and not dim.contains(flow.of(node)[axis]):  # in steps
        return False
    return not is_call(node, ATEN.unbind) and _in_whole_segments(dim, touched)


def _first_or_last(dim: Dim, index: object, touched: set[Dim]) -> bool:
    """Whether an entry is the first or last of all, or in front of the positions."""
    assert isinstance(index, int)
    if index in (0, -1):
        return True
    end = 0
    for part in dim.root.parts if dim.root.kind == "concat" else ():
        end += part.size
        if _carries((part,), touched):
            return False
        if 0 <= index < end:
            return True
    return False


def _in_whole_segments(dim: Dim, touched: set[Dim]) -> bool:
    """Whether at most one segment of a concatenation holds positions, and that one all of them."""
    parts = dim.root.parts if dim.root.kind == "concat" else (dim,)
    return sum(_carries((part,), touched) for part in parts) <= 1


def _all_dims(flow: Flow, node: fx.Node) -> Dims:
    outputs = flow.dims.get(node, ())
    return outputs if isinstance(outputs, tuple) else tuple(d for dims in outputs for d in dims)


def _carries(dims: Sequence[Dim], touched: set[Dim]) -> bool:
    return any(leaf in touched for dim in dims for leaf in dim.leaves())

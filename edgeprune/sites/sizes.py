"""What follows from another size of an input: every operator is asked for its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from edgeprune.errors import InputError
from edgeprune.program.graph import is_call, shape, value
from edgeprune.sites.atoms import Dim, size_of
from edgeprune.sites.flow import Dims, Flow, Sizes, describe, literals
from edgeprune.sites.rules.convolution import CONVOLUTIONS, TRANSPOSED
from edgeprune.sites.rules.space import (
    ADAPTIVE_MAXIMA,
    ADAPTIVE_MEANS,
    PADDING,
    POOLS,
    UPSAMPLING,
)

# The output of these has the same size whatever comes in.
ADAPTIVE = (*ADAPTIVE_MEANS, *ADAPTIVE_MAXIMA)
SLIDING = (*CONVOLUTIONS, *TRANSPOSED, *POOLS, *ADAPTIVE, *UPSAMPLING, *PADDING)
"""Each makes a dimension of its own from every spatial one that it reads."""


def sizes_at(flow: Flow, length: Dims, size: int) -> dict[Dim, int]:
    """The new size of every dimension that follows from the inputs'.

    Args:
        length: dimensions of the inputs that change together.
        size: of the first of them; a second one keeps its share, rounded.

    Raises:
        InputError: some operator cannot work at that size; names it.
    """
    first = length[0].size
    new: dict[Dim, int] = {}
    for dim in length:
        share = max(1, round(dim.size * size / first))
        _assign(new, dim, share, "the input")
    for node in flow.program.module.graph.nodes:
        if is_call(node, *SLIDING) and node not in flow.unknown:
            _slide(flow, new, node)
    return new


def nearest_size(flow: Flow, length: Dims, wanted: int) -> int | None:
    """The possible size below the full one that is nearest to ``wanted``; None where none is."""
    for size in sorted(range(1, length[0].size), key=lambda size: abs(size - wanted)):
        try:
            sizes_at(flow, length, size)
        except InputError:
            continue
        return size
    return None


def factors(dim: Dim, changed: Mapping[Dim, int]) -> list[Dim]:
    """The factors of a dimension, left to right; what changes as a whole is one."""
    found = dim.root
    if found in changed or found.kind != "product":
        return [found]
    return [factor for part in found.parts for factor in factors(part, changed)]


def setting(node: fx.Node, position: int, axis: int, default: int) -> int:
    """A convolution's stride (3), padding (4) or dilation (5) along a dimension."""
    given = node.args[position] if len(node.args) > position else default
    if isinstance(given, (list, tuple)):
        given = given[axis - 2] if len(given) > 1 else given[0]
    return given if isinstance(given, int) else default


def _slide(flow: Flow, new: dict[Dim, int], node: fx.Node) -> None:
    """The new sizes of what a sliding operator makes: asked of the operator itself."""
    before, after = flow.of(node.args[0]), flow.of(node)
    sizes = [size_of(dim, new) for dim in before]
    same = all(size_of(dim, new) == dim.size for dim in (*before, *after))
    if same or not after or _covers_all(node):
        return
    given = _asked(node, sizes)
    for axis in space(flow, node):
        _check_tiles(node, axis, before[axis].size, sizes[axis])
        _assign(new, after[axis], given[axis], describe(node))


def space(flow: Flow, node: fx.Node) -> list[int]:
    """The dimensions that a sliding operator makes anew; batch and channels are not among them."""
    before, after = flow.of(node.args[0]), flow.of(node)
    first = 1 if is_call(node, *PADDING) else 2
    return [i for i in range(first, len(after)) if after[i].root is not before[i].root]


def _covers_all(node: fx.Node) -> bool:
    """Whether it pools all that there is into one, as a mean over the whole picture does."""
    if not is_call(node, *POOLS):
        return False
    space = shape(node.args[0])[2:]
    window = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    return len(window) in (1, len(space)) and all(
        size == window[i % len(window)] and shape(node)[2 + i] == 1 for i, size in enumerate(space)
    )


@literals(*POOLS)
def pool_literals(node: fx.Node, sizes: Sizes) -> tuple[Any, ...]:
    """A window over all that there is follows its size."""
    if not _covers_all(node):
        return node.args
    return (node.args[0], list(sizes(node.args[0])[2:]), *node.args[2:])


def _check_tiles(node: fx.Node, axis: int, old: int, size: int) -> None:
    """A convolution that cuts the input into tiles side by side must use all of it up."""
    if not is_call(node, *CONVOLUTIONS):
        return
    tile = shape(node.args[1])[axis]
    side_by_side = setting(node, 3, axis, 1) == tile and not setting(node, 4, axis, 0)
    if tile > 1 and side_by_side and old % tile == 0 and size % tile:
        raise InputError(f"{describe(node)} cuts it into tiles of {tile}, wanted a multiple")


def _asked(node: fx.Node, sizes: Sequence[int]) -> tuple[int, ...]:
    """The shape that an operator gives when its first input has these sizes."""
    tensors: dict[fx.Node, torch.Tensor] = {}
    for source in node.all_input_nodes:
        wanted = sizes if source is node.args[0] else shape(source)
        found = value(source)
        assert found is not None
        tensors[source] = torch.empty(tuple(wanted), dtype=found.dtype, device="meta")
    args, kwargs = fx.map_arg((node.args, node.kwargs), tensors.__getitem__)
    try:
        return tuple(node.target(*args, **kwargs).shape)  # type: ignore[operator]
    except RuntimeError as error:
        size = " x ".join(map(str, sizes[2:]))
        reason = str(error).splitlines()[0]
        raise InputError(f"{describe(node)} cannot slide over {size} ({reason})") from error


def _assign(new: dict[Dim, int], dim: Dim, size: int, where: str) -> None:
    """Note a dimension's new size, and what it says about its parts.

    Of a product the leading factor takes the change, as in ``_following``.
    """
    found = dim.root
    known = found in new or any(leaf in new for leaf in found.leaves())
    if known:
        if size_of(found, new) != size:
            raise InputError(f"{where} gives {size} entries, but {size_of(found, new)} are wanted")
        return
    if found.kind == "concat":
        if size != found.size:
            raise InputError(f"{where} gives entries of which some are read by their place")
        return
    new[found] = size
    if found.kind == "product":
        rest = found.size // found.parts[0].size
        if size % rest:
            raise InputError(f"{where} gives {size} entries in groups of {rest}, wanted a multiple")
        _assign(new, found.parts[0], size // rest, where)

"""Length surgery on the inputs: the program for a smaller image, recording or cloud of points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.errors import InputError
from edgeprune.program.canonicalise import canonicalise
from edgeprune.program.fit import Resized
from edgeprune.program.graph import annotate, get_attribute, set_tensor
from edgeprune.program.program import Program
from edgeprune.sites import Sites
from edgeprune.sites.atoms import Dim, size_of
from edgeprune.sites.flow import describe
from edgeprune.sites.sizes import factors, sizes_at
from edgeprune.surgery.draft import Draft, like

MODES = {1: "linear", 2: "bicubic"}


def resize(sites: Sites, name: str, size: int) -> Program:
    """The program at another size of one input length.

    Every shape follows from the new size, and positional tables are interpolated as vision
    transformers do for another resolution: bicubic over height and width, linear over one
    dimension; what stands beside the positions (a class token) stays.

    Args:
        sites: of the program.
        name: of a "resolution", "time" or "points" site.
        size: the new size; of an image, its height.

    Returns:
        A program with storage of its own; ``example_inputs`` have the new size.

    Raises:
        InputError: an operator cannot work at that size; names it.
    """
    program, flow = sites.program, sites.flow
    length = sites.lengths[name]
    new = sizes_at(flow, length.dims, size)
    draft = Draft(sites)
    draft.origin = {copy: (node, new) for copy, (node, _) in draft.origin.items()}
    for path, dims in flow.tensors.items():
        if any(size_of(dim, new) != dim.size for dim in dims):
            old = get_attribute(draft.module, path)
            set_tensor(draft.module, path, like(old, resized_table(old.detach(), dims, new)))
    draft.recompute_literals()
    shrunk = tuple(
        Resized(
            number,
            length.axis,
            tuple(held),
            tuple(dim.size for dim in held.values()),
            tuple(size_of(dim, new) for dim in held.values()),
        )
        for number, held in length.places(flow)
    )
    inputs = program.example_inputs
    for each in shrunk:
        inputs = each(inputs)
    _check(draft, inputs, f"'{name}' at {size}")
    canonicalise(draft.module, inputs)
    resized = (*program.resized, *shrunk)
    return replace(program, module=draft.module, example_inputs=inputs, resized=resized)


def resized_table(table: Tensor, dims: tuple[Dim, ...], new: Mapping[Dim, int]) -> Tensor:
    """A positional table, interpolated over the dimensions that change."""
    for axis, dim in enumerate(dims):
        parts = dim.root.parts if dim.root.kind == "concat" else ()
        if any(size_of(part, new) != part.size for part in parts):
            pieces = table.split([part.size for part in parts], axis)
            resized = [
                resized_table(piece, (*dims[:axis], part, *dims[axis + 1 :]), new)
                for piece, part in zip(pieces, parts, strict=True)
            ]
            return torch.cat(resized, axis)
    split = [factor for dim in dims for factor in factors(dim, new)]
    changed = [i for i, factor in enumerate(split) if size_of(factor, new) != factor.size]
    if not changed:
        return table
    last = list(range(len(split) - len(changed), len(split)))
    grid = table.reshape([factor.size for factor in split]).movedim(changed, last)
    sizes = [size_of(split[i], new) for i in changed]
    flat = grid.reshape(1, -1, *grid.shape[-len(changed) :])
    small = functional.interpolate(flat, sizes, mode=MODES[len(changed)], align_corners=False)
    small = small.reshape(*grid.shape[: -len(changed)], *sizes).movedim(last, changed)
    return small.reshape([size_of(dim, new) for dim in dims])


def _check(draft: Draft, inputs: tuple[Tensor, ...], what: str) -> None:
    """Run the graph without data: every node must have the shape that its atoms say."""
    try:
        annotate(draft.module, inputs)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{what}: the model does not run at that size ({reason})") from error
    for node in draft.module.graph.nodes:
        found = node.meta["val"]
        if node in draft.origin and isinstance(found, Tensor):
            wanted = draft.sizes(node)
            if any(size not in (None, got) for size, got in zip(wanted, found.shape, strict=True)):
                got = tuple(found.shape)
                raise InputError(f"{what}: {describe(node)} has shape {got}, wanted {wanted}")

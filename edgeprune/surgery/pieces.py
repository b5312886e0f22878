"""Pieces: parts taken out of a program, to be timed alone at any size.

A sub-layer is ``x + f(x)`` with the norms that follow the sum. Its input is the residual stream;
what else the branch reads from outside (a mask, rotary tables) becomes an input too, so that a
piece can have any number of tokens even where the whole model cannot. A chunk outside of all
sub-layers reads what it reads, and gives what is read outside of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import fx

from edgeprune.program.graph import (
    ATEN,
    ancestors,
    drop_unread,
    get_attribute,
    is_call,
    is_size,
    value,
)
from edgeprune.sites import Sites
from edgeprune.sites.atoms import Dim, size_of
from edgeprune.sites.depth import Residual
from edgeprune.sites.flow import literals_for
from edgeprune.sites.parts import Part
from edgeprune.surgery.draft import Draft


def token_dim(sites: Sites, residual: Residual) -> Dim | None:
    """The token dimension of the stream ``[batch, tokens, d_model]`` around a sub-layer."""
    dims = sites.flow.of(residual.add)
    return dims[1].root if len(dims) == 3 else None


class Piece(NamedTuple):
    """Sub-layers or a chunk on their own.

    Attributes:
        module: reads the stream first, if it has one, then what else comes from outside.
        inputs: examples at batch 1: the stream ``[1, tokens, d_model]``, ...
        sources: the nodes of the program that the inputs stand for.
    """

    module: fx.GraphModule
    inputs: tuple[torch.Tensor, ...]
    sources: tuple[fx.Node, ...]


def chain(
    sites: Sites,
    residuals: Sequence[Residual],
    kept: Mapping[str, int],
    tokens: int,
    removed: bool = False,
) -> Piece:
    """Some sub-layers one after the other, each cut, all with ``tokens`` tokens.

    Args:
        sites: of the program.
        residuals: distinct sub-layers whose streams have the same shape, in graph order.
        kept: width site -> how many of its units stay (the first ones).
        tokens: on the stream; ignored where the stream has no token dimension.
        removed: leave the branches out: only the closing norms run.
    """
    return _Extraction(_cut(sites, kept), tokens, removed).chain(residuals)


def chunk(sites: Sites, part: Part, kept: Mapping[str, int]) -> Piece:
    """A part outside of all sub-layers, cut.

    Args:
        sites: of the program.
        part: of ``sites.parts``.
        kept: width site -> how many of its units stay (the first ones).
    """
    return _Extraction(_cut(sites, kept)).chunk(part)


def _cut(sites: Sites, kept: Mapping[str, int]) -> Draft:
    draft = Draft(sites)
    draft.kept = {sites.atoms[name].root: tuple(range(n)) for name, n in kept.items()}
    draft.cut_weights()
    return draft


class _Extraction:
    """Rewires the draft so that a part reads inputs, or the part before, and drops all else."""

    def __init__(self, draft: Draft, tokens: int = 0, removed: bool = False) -> None:
        self.draft = draft
        self.graph = draft.module.graph
        self.tokens = tokens
        self.removed = removed
        # Of the batch, which may be a factor of other dimensions, and of a stream's tokens.
        self.one_example: dict[Dim, int] = {draft.sites.flow.batch.root: 1}
        self.size = self.one_example
        self.inputs: dict[fx.Node, fx.Node] = {}
        self.examples: list[torch.Tensor] = []

    def chain(self, residuals: Sequence[Residual]) -> Piece:
        """See :func:`chain`."""
        self._resize(residuals[0])
        stream = self._input(residuals[0].entry)
        for residual in residuals:
            self._resize(residual)
            stream = self._link(residual, stream)
        return self._piece((stream,))

    def chunk(self, part: Part) -> Piece:
        """See :func:`chunk`."""
        self._adopt(part.nodes, {})
        return self._piece([self.draft.copies[node] for node in part.boundary()[1]])

    def _piece(self, results: Sequence[fx.Node]) -> Piece:
        needed = set(self.inputs.values()).union(*(ancestors(each) for each in results))
        for node in reversed(list(self.graph.nodes)):
            if node not in needed:
                self.graph.erase_node(node)
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        drop_unread(self.draft.module)
        return Piece(self.draft.module, tuple(self.examples), tuple(self.inputs))

    def _resize(self, residual: Residual) -> None:
        dim = token_dim(self.draft.sites, residual)
        self.size = self.one_example | ({} if dim is None else {dim: self.tokens})

    def _link(self, residual: Residual, stream: fx.Node) -> fx.Node:
        """Let one sub-layer read ``stream``; returns what it hands on."""
        norms = residual.closing_norms
        inside = norms if self.removed else (*residual.nodes, residual.add, *norms)
        entry = residual.add if self.removed else residual.entry
        self._adopt(inside, {entry: stream})
        return self.draft.copies[inside[-1]] if inside else stream

    def _adopt(self, inside: Sequence[fx.Node], given: Mapping[fx.Node, fx.Node]) -> None:
        """Let these nodes read ``given`` in place of others, and inputs for all else outside."""
        copies = self.draft.copies
        for node in inside:
            self.draft.origin[copies[node]] = (node, self.size)
        for node in inside:
            copy = copies[node]
            for source in node.all_input_nodes:
                if source in given:
                    copy.replace_input_with(copies[source], given[source])
                elif is_size(source):
                    self._fix_size(copy, source)
                elif source not in inside and not self._belongs(source):
                    copy.replace_input_with(copies[source], self._input(source))
            recompute = literals_for(node)
            if recompute is not None:
                copy.args = recompute(copy, self.draft.sizes)

    def _input(self, node: fx.Node) -> fx.Node:
        """An input in place of a node of the program, after those that there are."""
        if node not in self.inputs:
            first = next(iter(self.graph.nodes))
            last = next(reversed(self.inputs.values()), None)
            with self.graph.inserting_after(last) if last else self.graph.inserting_before(first):
                made = self.graph.placeholder(f"outside_{len(self.inputs)}")
            made.meta = dict(node.meta)
            self.inputs[node] = made
            self.draft.origin[made] = (node, self.size)
            sizes = cast(tuple[int, ...], self.draft.sizes(made))  # the batch has one, so all have
            self.examples.append(_example(node, sizes))
        return self.inputs[node]

    def _belongs(self, node: fx.Node) -> bool:
        """Whether it is a weight of the sub-layer: a tensor of the same size for any tokens."""
        dims = self.draft.sites.flow.of(node)
        return node.op == "get_attr" and not any(d.contains(t) for d in dims for t in self.size)

    def _fix_size(self, copy: fx.Node, size: fx.Node) -> None:
        """Let it read a number in place of one that is computed from the batch."""
        computed = self.draft.copies[size]
        copy.args = fx.map_arg(copy.args, lambda n: self._number(size) if n is computed else n)

    def _number(self, size: fx.Node) -> Any:
        if is_call(size, ATEN.sym_size):
            tensor, axis = size.args
            return size_of(self.draft.sites.flow.of(tensor)[axis], self.size)
        return size.target(*fx.map_arg(size.args, self._number))  # type: ignore[operator]


def _example(node: fx.Node, shape: tuple[int, ...]) -> torch.Tensor:
    """Values that behave like the program's: a mask that hides nothing, numbers around 0."""
    found = value(node)
    assert found is not None
    if not found.is_floating_point():
        return torch.ones(shape, dtype=found.dtype)
    seed = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=seed, dtype=found.dtype) * (len(shape) == 3)


def weights_of(sites: Sites, part: Part) -> tuple[str, ...]:
    """Paths of every weight that belongs to the part: those that no part before it reads.

    Of a sub-layer the branch's and the closing norms', shared by several or not.
    """
    if part.residual is not None:
        closing = part.residual.closing_norms
        return tuple(dict.fromkeys((*part.residual.weights, *_tensors_read(closing))))
    before = sites.parts[: sites.parts.index(part)]
    elsewhere = {path for other in before for path in _tensors_read(other.nodes)}
    module = sites.program.module
    return tuple(
        path
        for path in dict.fromkeys(_tensors_read(part.nodes))
        if path not in elsewhere and isinstance(get_attribute(module, path), torch.nn.Parameter)
    )


def _tensors_read(nodes: Sequence[fx.Node]) -> list[str]:
    return [
        str(source.target)
        for node in nodes
        for source in node.all_input_nodes
        if source.op == "get_attr"
        and isinstance(get_attribute(node.graph.owning_module, str(source.target)), torch.Tensor)
    ]

"""The copy that surgery works on: a graph whose nodes remember which original they come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edgeprune.program.graph import get_attribute, set_tensor
from edgeprune.sites import Sites
from edgeprune.sites.atoms import Dim, positions
from edgeprune.sites.flow import literals_for


class Draft:
    """A deep copy of a program's module, being cut.

    Attributes:
        module: the copy.
        sites: of the original program.
        origin: node of the copy -> (original node, sizes fixed at this place: of the tokens that
            are left, and of the batch in a piece).
        kept: atom -> units that stay.
        stands_for: residual sum -> what stands in its place further on.
    """

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self.kept: dict[Dim, tuple[int, ...]] = {}
        self.stands_for: dict[fx.Node, fx.Node] = {}
        self.copies: dict[fx.Node, fx.Node] = {}
        source = sites.program.module
        graph = fx.Graph()
        output = graph.graph_copy(source.graph, self.copies)  # type: ignore[arg-type]
        graph.output(output)
        root = torch.nn.Module()
        for path, tensor in sites.program.tensors.items():
            set_tensor(root, path, clone(tensor))
        self.module = fx.GraphModule(root, graph)
        self.origin: dict[fx.Node, tuple[fx.Node, dict[Dim, int]]] = {
            copy: (node, {}) for node, copy in self.copies.items()
        }
        for node, copy in self.copies.items():
            copy.meta = dict(node.meta)

    def emit(
        self, target: Any, *args: Any, like: tuple[fx.Node, dict[Dim, int]] | None = None
    ) -> fx.Node:
        """Add a call at the graph's insertion point; ``like`` says what shape it will have."""
        node = self.module.graph.call_function(target, args)
        if like is not None:
            self.origin[node] = like
        return node

    def buffer(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """Add a constant and a node that reads it."""
        set_tensor(self.module, name, tensor)
        return self.module.graph.get_attr(name)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let a new node stand for one of the copy's, which goes."""
        self.origin[new] = self.origin.pop(old)
        self.copies[self.origin[new][0]] = new
        old.replace_all_uses_with(new)
        self.module.graph.erase_node(old)

    def dims(self, node: fx.Node) -> tuple[Dim, ...]:
        """The original dimension trees of a node of the copy."""
        origin = self.origin.get(node)
        return self.sites.flow.of(origin[0]) if origin else ()

    def sizes(self, node: fx.Node) -> tuple[int | None, ...]:
        """The node's new shape; None for the dimension that carries a batch of any size."""
        original, fixed = self.origin[node]
        return tuple(self._size(dim, fixed) for dim in self.sites.flow.of(original))

    def _size(self, dim: Dim, fixed: dict[Dim, int]) -> int | None:
        batch, found = self.sites.flow.batch.root, dim.root
        if batch not in fixed and found.contains(batch):
            return None
        if found in fixed:
            return fixed[found]
        if found.kind == "leaf" or not any(found.contains(each) for each in fixed):
            return len(positions(found, self.kept))
        sizes = [self._size(part, fixed) for part in found.parts]
        total = 1 if found.kind == "product" else 0
        for size in sizes:
            assert size is not None
            total = total * size if found.kind == "product" else total + size
        return total

    def cut_weights(self) -> None:
        """Keep only the kept units' rows and columns of every weight and buffer."""
        for path, dims in self.sites.flow.tensors.items():
            tensor = get_attribute(self.module, path)
            for axis, dim in enumerate(dims):
                if any(leaf in self.kept for leaf in dim.leaves()):
                    index = torch.tensor(positions(dim, self.kept), dtype=torch.long)
                    tensor = like(tensor, tensor.detach().index_select(axis, index))
            set_tensor(self.module, path, tensor)

    def recompute_literals(self) -> None:
        """Let every literal size follow from the new shapes."""
        for node in self.module.graph.nodes:
            recompute = literals_for(node) if node.op == "call_function" else None
            if recompute is not None and node in self.origin:
                node.args = recompute(node, self.sizes)


def clone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with storage of its own, a parameter if it was one."""
    return like(tensor, tensor.detach().clone())


def like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` as a parameter, if ``tensor`` was one."""
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def is_float(node: fx.Node) -> bool:
    """Whether the node computes floating point numbers."""
    found = node.meta.get("val")
    return isinstance(found, torch.Tensor) and found.is_floating_point()

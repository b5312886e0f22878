"""Depth sites: residual branches x + f(x), found on the graph by dominance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import fx

from edgeprune.program.graph import (
    ATEN,
    calls,
    get_attribute,
    is_call,
    is_size,
    shape,
)
from edgeprune.sites.site import unique_name


@dataclass(frozen=True)
class Residual:
    """A residual sum and the branch that feeds it.

    Attributes:
        name: of the sub-layer: ``encoder.layer.3.attention``.
        add: the sum. Cutting the sub-layer puts ``entry`` in its place.
        entry: the other operand, the residual stream. The branch reads it, or what it was before
            other branches that read the same were added.
        branch: the branch's last node, the other operand of ``add``.
        nodes: the branch's nodes in graph order; weights are not among them.
    """

    name: str
    add: fx.Node
    entry: fx.Node
    branch: fx.Node
    nodes: tuple[fx.Node, ...]

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """Paths of the weights the branch reads."""
        return tuple(dict.fromkeys(_weights(self.nodes)))

    @cached_property
    def closing_norms(self) -> tuple[fx.Node, ...]:
        """Norms of its own layer that alone read its sum, as in a post-norm encoder."""
        found = [self.add]
        while len(found[-1].users) == 1:
            reader = next(iter(found[-1].users))
            own = [str(n.target) for n in reader.all_input_nodes if n.op == "get_attr"]
            if not own or not all(path.startswith(f"{self.layer}.") for path in own):
                break
            found.append(reader)
        return tuple(found[1:])

    @property
    def layer(self) -> str:
        """The layer it belongs to: its name without the last word."""
        return self.name.rpartition(".")[0]

    @property
    def attentions(self) -> tuple[fx.Node, ...]:
        """Its attention calls."""
        return tuple(n for n in self.nodes if is_call(n, ATEN.scaled_dot_product_attention))


@dataclass(frozen=True)
class Layer:
    """Consecutive sub-layers of one layer, with the norms that follow them."""

    name: str
    entry: fx.Node
    exit: fx.Node
    sublayers: tuple[Residual, ...]


def find_residuals(module: fx.GraphModule) -> tuple[Residual, ...]:
    """All innermost residual branches that have weights of their own, in graph order."""
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    found: list[Residual] = []
    entries: dict[fx.Node, fx.Node] = {}
    for add in calls(module.graph, ATEN.add):
        for entry, branch in _operand_pairs(add):
            stream = _read_by(branch, entry, entries, order)
            nodes = _closed_branch(stream, branch, add, order)
            if nodes and any(_weights(nodes)) and entries.keys().isdisjoint(nodes):
                name = unique_name(_name(module, nodes), {other.name for other in found})
                found.append(Residual(name, add, entry, branch, nodes))
                entries[add] = entry
                break
    return _joined_layers(found)


def _joined_layers(residuals: list[Residual]) -> tuple[Residual, ...]:
    """Under the name of the layer where each sub-layer has a number of its own in it.

    ``block.3.layer.0.attention`` and ``block.3.layer.1.ffn`` belong to ``block.3``.
    """
    alone = Counter(residual.layer for residual in residuals)
    groups: dict[str, list[Residual]] = {}
    for residual in residuals:
        outer = _outer_layer(residual.layer)
        if outer and alone[residual.layer] == 1:
            groups.setdefault(outer, []).append(residual)
    renamed: dict[str, str] = {}
    taken = {residual.name for residual in residuals}
    for outer, parts in groups.items():
        if outer not in alone and len({part.name.rpartition(".")[2] for part in parts}) > 1:
            for part in parts:
                word = part.name.rpartition(".")[2]
                renamed[part.name] = unique_name(f"{outer}.{word}", taken)
                taken.add(renamed[part.name])
    return tuple(replace(r, name=renamed.get(r.name, r.name)) for r in residuals)


def _outer_layer(layer: str) -> str:
    """The prefix up to the number before the last: ``block.3`` of ``block.3.layer.0``."""
    words = layer.split(".")[:-1]
    while words and not words[-1].isdigit():
        words.pop()
    return ".".join(words)


def find_layers(residuals: Iterable[Residual]) -> tuple[Layer, ...]:
    """Runs of two or more sub-layers under one numbered prefix."""
    groups: dict[str, list[Residual]] = {}
    order: dict[fx.Node, int] = {}
    for residual in residuals:
        order = order or {node: i for i, node in enumerate(residual.add.graph.nodes)}
        groups.setdefault(residual.layer, []).append(residual)
    layers = []
    for name, parts in groups.items():
        end = (parts[-1].add, *parts[-1].closing_norms)[-1]
        if name and len(parts) > 1 and _is_closed(parts[0].entry, end, order):
            layers.append(Layer(name, parts[0].entry, end, tuple(parts)))
    return tuple(layers)


def _operand_pairs(add: fx.Node) -> Iterable[tuple[fx.Node, fx.Node]]:
    operands = add.args[:2]
    if all(isinstance(n, fx.Node) and shape(n) == shape(add) for n in operands):
        one, two = operands
        yield one, two
        yield two, one


def _read_by(
    branch: fx.Node, entry: fx.Node, sums: dict[fx.Node, fx.Node], order: dict[fx.Node, int]
) -> fx.Node:
    """The stream that a branch reads: ``entry``, or before the branches that run beside it."""
    stream = entry
    while stream in sums and not between(stream, branch, order):
        stream = sums[stream]
    return stream


def _closed_branch(
    entry: fx.Node, branch: fx.Node, add: fx.Node, order: dict[fx.Node, int]
) -> tuple[fx.Node, ...]:
    """Nodes between ``entry`` and ``branch``, or () when something outside reads one of them."""
    if entry is branch:
        return ()
    inside = {n for n in between(entry, branch, order) if not is_size(n)}
    if any(user not in inside and user is not add for node in inside for user in node.users):
        return ()
    return tuple(sorted(inside, key=order.__getitem__))


def between(entry: fx.Node, end: fx.Node, order: Mapping[fx.Node, int]) -> set[fx.Node]:
    """What is computed from ``entry`` and leads to ``end``, which is included; empty if nothing.

    Looks at no node before ``entry``, so that all branches of a deep network cost what it is long.
    """
    first = order[entry]
    before = {end} if order[end] > first else set()
    todo = list(before)
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in before and order[source] > first:
                before.add(source)
                todo.append(source)
    inside = {entry}
    for node in sorted(before, key=order.__getitem__):
        if any(source in inside for source in node.all_input_nodes):
            inside.add(node)
    return inside - {entry} if end in inside else set()


def _weights(nodes: Iterable[fx.Node]) -> list[str]:
    return [
        str(source.target)
        for node in nodes
        for source in node.all_input_nodes
        if source.op == "get_attr"
        and isinstance(get_attribute(node.graph.owning_module, source.target), torch.nn.Parameter)
    ]


def _name(module: fx.GraphModule, nodes: tuple[fx.Node, ...]) -> str:
    """``<numbered prefix of its weights>.<attention | ffn | block | branch>``.

    A block works by convolutions alone.
    """
    layer = layer_prefix(_weights(nodes))
    if any(is_call(n, ATEN.scaled_dot_product_attention) for n in nodes):
        word = "attention"
    else:
        matrices = [w for w in dict.fromkeys(_weights(nodes)) if _is_matrix(module, w)]
        linear = any(is_call(n, ATEN.linear) for n in nodes)
        word = "branch" if len(matrices) < 2 else "ffn" if linear else "block"
    return f"{layer}.{word}" if layer else word


def _is_matrix(module: fx.GraphModule, path: str) -> bool:
    tensor = get_attribute(module, path)
    return isinstance(tensor, torch.Tensor) and tensor.ndim > 1


def layer_prefix(paths: Iterable[str]) -> str:
    """The paths' common prefix, up to its last number: ``encoder.layer.3``."""
    split = [path.split(".")[:-1] for path in paths]
    common: list[str] = []
    for words in zip(*split, strict=False):
        if len(set(words)) > 1:
            break
        common.append(words[0])
    while common and any(re.fullmatch(r"\d+", w) for w in common) and not common[-1].isdigit():
        common.pop()
    return ".".join(common)


def _is_closed(entry: fx.Node, end: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    inside = {node for node in between(entry, end, order) - {end} if not is_size(node)}
    return all(user in inside or user is end for node in inside for user in node.users)

"""Axis propagation: walks the graph once, letting each operator's rule tie dimensions together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import fx

from edgeprune.program.graph import is_size, op_name, shape, value
from edgeprune.program.program import Program
from edgeprune.registry import Registry
from edgeprune.sites.atoms import Dim, unify

Dims: TypeAlias = tuple[Dim, ...]
Rule: TypeAlias = "Callable[[Flow, fx.Node], Dims | list[Dims]]"
Sizes: TypeAlias = Callable[[fx.Node], tuple[int | None, ...]]
"""New shape of a node after a cut; None for the dimension that carries the batch."""
Literals: TypeAlias = Callable[[fx.Node, Sizes], tuple[Any, ...]]

RULES: Registry[Rule] = Registry("rule")
"""How an ATen op (overload packet or function) relates its dimensions."""
rule = RULES.register
LITERALS: Registry[Literals] = Registry("literals")
"""How an op's literal arguments (sizes, offsets) follow from the new shapes."""
literals = LITERALS.register


class Flow:
    """What propagation found.

    Attributes:
        dims: node -> one Dim per dimension (a list of such, for an op with several outputs).
        tensors: path of a weight or buffer -> its Dims.
        batch: the dimension every input starts with.
        roles: (role, dimension) pairs that rules saw: "heads", "kv_heads", "tokens", ...
        unknown: calls without a rule; all they touch is frozen.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.dims: dict[fx.Node, Dims | list[Dims]] = {}
        self.tensors: dict[str, Dims] = {}
        self.roles: list[tuple[str, Dim]] = []
        self.unknown: list[fx.Node] = []
        self.batch = Dim(program.example_inputs[0].shape[0])
        self.batch.freeze("it is the batch")
        for node in program.module.graph.nodes:
            self.dims[node] = self._visit(node)

    def of(self, node: Any) -> Dims:
        """The dimensions of a tensor argument; () for anything else."""
        found = self.dims.get(node, ()) if isinstance(node, fx.Node) else ()
        return found if isinstance(found, tuple) else ()

    def outputs(self, node: fx.Node) -> list[Dims]:
        """The dimensions of each of a node's outputs."""
        found = self.dims[node]
        return found if isinstance(found, list) else [found]

    def fresh(self, node: fx.Node) -> Dims:
        """New atoms for a node's output."""
        return tuple(Dim(size) for size in shape(node))

    def tie(self, one: Dim, two: Dim, node: fx.Node) -> None:
        """Say that two dimensions are the same; a size of 1 broadcasts and stays apart."""
        if one.size != 1 and two.size != 1:
            unify(one, two, describe(node))

    def freeze(self, dims: Iterable[Dim], reason: str) -> None:
        """Say that these dimensions cannot be cut."""
        for dim in dims:
            dim.freeze(reason)

    def role(self, name: str, dim: Dim) -> None:
        """Note what a dimension is for."""
        self.roles.append((name, dim))

    def _visit(self, node: fx.Node) -> Dims | list[Dims]:
        if node.op == "get_attr":
            path = str(node.target)
            if path not in self.tensors:
                self.tensors[path] = self.fresh(node)
            return self.tensors[path]
        if node.op == "placeholder":
            dims = (self.batch, *self.fresh(node)[1:])
            self.freeze(dims, "it is an input of the model")
            return dims
        if node.op == "output":
            for result in node.all_input_nodes:
                self.freeze(self.of(result), "it is an output of the model")
            return ()
        if is_size(node):
            return ()
        found = rule_for(node)
        return found(self, node) if found else self.without_rule(node)

    def without_rule(self, node: fx.Node) -> Dims | list[Dims]:
        """What nothing is known about: all it touches is frozen."""
        reason = f"no rule for {op_name(node)}"
        self.unknown.append(node)
        for source in node.all_input_nodes:
            self.freeze(self.of(source), reason)
        result = node.meta.get("val")
        several = isinstance(result, (tuple, list))
        found = [
            tuple(Dim(int(size)) for size in getattr(each, "shape", ()))
            for each in (result if several else (result,))
        ]
        for dims in found:
            self.freeze(dims, reason)
        return found if several else found[0]


def rule_for(node: fx.Node) -> Rule | None:
    """The rule of a call, by its operator or because it works element by element."""
    found = _registered(RULES, node)
    if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _registered(RULES, torch.Tag.pointwise)
    return found


def literals_for(node: fx.Node) -> Literals | None:
    """How a call's literal arguments follow new shapes; None where it has none."""
    return _registered(LITERALS, node)


def _registered(table: dict[Any, Any], key: Any) -> Any:
    target = key.target if isinstance(key, fx.Node) else key
    packet = getattr(target, "overloadpacket", None)
    return table.get(target, table.get(packet))


def describe(node: fx.Node) -> str:
    """``view_3 (aten.view.default)``, for reasons and messages."""
    return f"{node.name} ({op_name(node)})"


def is_tensor(node: Any) -> bool:
    """Whether an argument is a tensor in the graph."""
    return isinstance(node, fx.Node) and value(node) is not None

"""Axis propagation: walks the graph once, letting each operator's rule tie dimensions together."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import fx

from edgeprune.program.graph import fake_values, is_size, one_more, op_name, shape
from edgeprune.program.program import Program
from edgeprune.program.refusals import at
from edgeprune.registry import Registry
from edgeprune.sites.atoms import Dim, product, unify

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


log = logging.getLogger(__name__)

OUTPUT = "it is an output of the model"


class Flow:
    """What propagation found.

    Attributes:
        dims: node -> one Dim per dimension (a list of such, for an op with several outputs).
        tensors: path of a weight or buffer -> its Dims.
        batch: the dimension every input starts with.
        roles: (role, dimension) pairs that rules saw: "heads", "kv_heads", "tokens", ...
        used_up: (call, input) -> dimensions of the input that the call sums over. Its result may
            carry the same atom again: a convolution whose output is added to its input does.
        unknown: calls without a rule; all they touch is frozen.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.dims: dict[fx.Node, Dims | list[Dims]] = {}
        self.tensors: dict[str, Dims] = {}
        self.roles: list[tuple[str, Dim]] = []
        self.used_up: defaultdict[tuple[fx.Node, fx.Node], list[Dim]] = defaultdict(list)
        self.unknown: list[fx.Node] = []
        self.batch = Dim(program.example_inputs[0].shape[0])
        self.batch.freeze("it is the batch")
        for node in program.module.graph.nodes:
            self.dims[node] = self._visit(node)
        for node in program.module.graph.nodes:
            self._freeze_repeated(node)

    def of(self, node: Any) -> Dims:
        """The dimensions of a tensor argument; () for anything else."""
        found = self.dims.get(node, ()) if isinstance(node, fx.Node) else ()
        return found if isinstance(found, tuple) else ()

    def outputs(self, node: fx.Node) -> list[Dims]:
        """The dimensions of each of a node's outputs."""
        found = self.dims[node]
        return found if isinstance(found, list) else [found]

    @cached_property
    def holders(self) -> dict[Dim, list[tuple[str, int]]]:
        """Dimension or part of one -> (path, dimension) of every weight and buffer with it."""
        found: dict[Dim, list[tuple[str, int]]] = defaultdict(list)
        for path, dims in self.tensors.items():
            for axis, dim in enumerate(dims):
                for part in dict.fromkeys(dim.parts_within()):
                    found[part].append((path, axis))
        return found

    @cached_property
    def readers(self) -> dict[Dim, list[tuple[fx.Node, fx.Node]]]:
        """Atom -> (call, input) wherever one uses it up, by summing over it or otherwise."""
        found: dict[Dim, list[tuple[fx.Node, fx.Node]]] = defaultdict(list)
        for node in self.program.module.graph.nodes:
            sources = node.all_input_nodes if node.op == "call_function" else []
            for source in sources:
                if source.op == "get_attr":
                    continue
                for atom in dict.fromkeys(leaf for dim in self.of(source) for leaf in dim.leaves()):
                    if self.uses(node, source, atom):
                        found[atom].append((node, source))
        return found

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

    def use_up(self, node: fx.Node, source: Any, *dims: Dim) -> None:
        """Note that a call sums over dimensions of one of its inputs."""
        self.used_up[node, source] += dims

    def uses(self, node: fx.Node, source: fx.Node, atom: Dim) -> bool:
        """Whether a call sums over the atom in that input, or its result does not carry it on."""
        if any(dim.contains(atom) for dim in self.used_up.get((node, source), ())):
            return True
        return not any(dim.contains(atom) for dims in self.outputs(node) for dim in dims)

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
                self.freeze(self.of(result), OUTPUT)
            return ()
        if is_size(node):
            return ()
        found = self._by_rule(node)
        return self.without_rule(node) if found is None else found

    def _by_rule(self, node: fx.Node) -> Dims | list[Dims] | None:
        """What the operator's rule says; None without a rule, or in a form it does not know."""
        apply = rule_for(node)
        if apply is None:
            return None
        try:
            found = apply(self, node)
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            log.warning("%s: the rule does not know this form (%r)", describe(node), error)
            return None
        return found if isinstance(found, list) or _sizes(found) == shape(node) else None

    def _freeze_repeated(self, node: fx.Node) -> None:
        """One atom in two dimensions, as in a Gram matrix: masking one of them is not enough."""
        for dims in self.outputs(node):
            if not any(dim.contains(self.batch) for dim in dims):  # a square weight is cut in both
                continue
            seen: set[Dim] = set()
            for dim in dims:
                leaves = {leaf for leaf in dim.leaves() if leaf.size > 1}
                for leaf in leaves & seen:
                    leaf.freeze(f"{describe(node)} has it in two dimensions")
                seen |= leaves

    def without_rule(self, node: fx.Node) -> Dims | list[Dims]:
        """What nothing is known about: all it touches is frozen."""
        reason = f"no rule for {describe(node)}"
        self.unknown.append(node)
        for source in node.all_input_nodes:
            self.freeze(self.of(source), reason)
        result, larger = node.meta.get("val"), self._one_more[node]
        several = isinstance(result, (tuple, list))
        pairs = zip(result, larger, strict=True) if several else [(result, larger)]
        found = [self._dims_of(*pair) for pair in pairs]
        for dims in found:
            self.freeze(dims, reason)
        return found if several else found[0]

    @cached_property
    def _one_more(self) -> dict[fx.Node, Any]:
        """What each node computes for a batch one larger."""
        return fake_values(self.program.module, one_more(self.program.example_inputs))

    def _dims_of(self, result: Any, larger: Any) -> Dims:
        """New atoms for a result; sizes that follow the batch say so."""
        shapes = (getattr(each, "shape", ()) for each in (result, larger))
        return tuple(
            Dim(int(size)) if size == more else self._with_batch(int(size))
            for size, more in zip(*shapes, strict=True)
        )

    def _with_batch(self, size: int) -> Dim:
        rest, left = divmod(size, self.batch.size)
        if left or rest <= 1:
            return self.batch if size == self.batch.size else Dim(size)
        return product([self.batch, Dim(rest)])


def _sizes(dims: Dims) -> tuple[int, ...]:
    return tuple(dim.size for dim in dims)


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
    """``view_3 (aten.view.default, at model.py:57)``, for reasons and messages."""
    return f"{node.name} ({op_name(node)}{at(node)})"

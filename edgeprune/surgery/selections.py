"""Token selections found again in a slim program, and made visible to whoever checks it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from torch import fx

from edgeprune.program.graph import ATEN, is_call
from edgeprune.program.program import Program, as_tuple

PLACES = re.compile(r"select_\d+_\d+_of_\d+\.places")


def find_selections(program: Program) -> tuple[fx.Node, ...]:
    """The one-hot matrices ``[batch, kept, tokens]`` by which token surgery selects, in order.

    They are recognised by the constant they are built with, so also in a program that was saved
    and loaded.
    """
    graph = program.module.graph
    constants = [n for n in graph.nodes if n.op == "get_attr" and PLACES.search(str(n.target))]
    used = {distance for constant in constants for distance in constant.users}
    return tuple(_downward(n, ATEN.transpose.int) for n in graph.nodes if n in used)


def scores_of(selection: fx.Node) -> fx.Node:
    """The scores ``[batch, tokens]`` that one of ``find_selections`` ranks its tokens by."""
    columns = selection.args[0]
    assert isinstance(columns, fx.Node)
    difference = _upward(columns.args[1], lambda node: is_call(node, ATEN.sub.Tensor))
    row = difference.args[0]
    assert isinstance(row, fx.Node) and isinstance(row.args[0], fx.Node)
    return row.args[0]


def with_selections(program: Program) -> Program:
    """The same program with its selections as further outputs ``select_0``, ``select_1``…

    It shares its weights with ``program``. Lowered, it tells which tokens a runtime keeps.
    """
    found = find_selections(program)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = as_tuple(graph.graph_copy(program.module.graph, copies))  # type: ignore[arg-type]
    shown = (*outputs, *(copies[node] for node in found))
    graph.output(shown[0] if len(shown) == 1 else shown)  # type: ignore[arg-type]
    names = (*program.output_names, *(f"select_{i}" for i in range(len(found))))
    return replace(program, module=fx.GraphModule(program.module, graph), output_names=names)


def _downward(node: fx.Node, target: object) -> fx.Node:
    while not is_call(node, target):
        (node,) = node.users
    return node


def _upward(node: object, wanted: Callable[[fx.Node], bool]) -> fx.Node:
    while isinstance(node, fx.Node) and not wanted(node):
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node

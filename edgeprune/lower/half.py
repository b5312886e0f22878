"""fp16 before lowering: weights, and what flows between operators, as half floats."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from edgeprune.errors import InputError
from edgeprune.lower.graph import aten, attribute_of, constant, emit, is_call
from edgeprune.lower.ops import OURS
from edgeprune.surgery.selections import STEEP, find_columns

# Numbers beyond it hide what a mask adds them to. Two masks together are still finite, and a score
# that one was added to weighs nothing.
LARGEST = 3e4
# XNNPACK has it for floats only; the runtime's own takes far longer than the casts.
FLOAT_CALLS = (aten.gelu.default, aten.layer_norm.default)
# Operands of our operators that stay floats: masks hold -1e9, and vectors of weights are small.
FLOAT_OPERANDS = {
    "edgeprune::slim_attention": (3,),
    "edgeprune::slim_attention_scores": (3, 4),
    "edgeprune::add_layer_norm": (2, 3),
    "edgeprune::token_select": (1, 2),
}


def to_half(module: GraphModule) -> None:
    """Let an ATen graph with propagated values compute in float16, in place.

    Its inputs and outputs stay as they are; they are cast inside.

    Raises:
        InputError: token selections in plain arithmetic, whose numbers half floats do not hold.
    """
    if find_columns(module.graph) or any(STEEP in node.args for node in module.graph.nodes):
        raise InputError(
            "fp16: tokens are selected by numbers that half floats do not hold. Lower with "
            "delegate auto, whose operators select in float32 (but merge nowhere), or as fp32 or "
            "int8."
        )
    _Halved(module).run()


class _Halved:
    def __init__(self, module: GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.nodes = list(self.graph.nodes)
        self.floats = _floats(self.graph)
        self.casts: dict[tuple[Node, torch.dtype], Node] = {}

    def run(self) -> None:
        for node in self.nodes:
            if node.op == "output":
                node.args = map_aggregate(node.args, lambda each: self._as(each, torch.float32))
            elif node.op == "call_function":
                self._convert(node)
        self.graph.eliminate_dead_code()
        self.module.recompile()

    def _convert(self, node: Node) -> None:
        wanted = self._type(node)
        apart = _float_operands(node)
        if wanted == torch.float16:
            node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _narrowed)
        node.args = tuple(
            map_aggregate(
                each, lambda leaf, to=torch.float32 if n in apart else wanted: self._as(leaf, to)
            )
            for n, each in enumerate(node.args)
        )
        node.kwargs = map_aggregate(node.kwargs, lambda leaf: self._as(leaf, wanted))

    def _type(self, node: Node) -> torch.dtype:
        """Of the floats that a node makes."""
        whole = node.op in ("placeholder", "get_attr") or node in self.floats
        return torch.float32 if whole else torch.float16

    def _as(self, leaf: Any, wanted: torch.dtype) -> Any:
        """An argument of that type; what is no float stays as it is."""
        if not isinstance(leaf, Node) or not _is_float(leaf) or self._type(leaf) == wanted:
            return leaf
        if (leaf, wanted) not in self.casts:
            with self.graph.inserting_after(leaf):
                self.casts[leaf, wanted] = self._cast(leaf, wanted)
        return self.casts[leaf, wanted]

    def _cast(self, node: Node, wanted: torch.dtype) -> Node:
        value = attribute_of(self.module, node)
        if value is None:
            return emit(self.graph, aten.to.dtype, node, wanted)
        halved = value.clamp(-LARGEST, LARGEST).to(wanted)
        return constant(self.module, f"{node.name}_half", halved, like=node)


def _floats(graph: Graph) -> set[Node]:
    """The calls that compute in float32: some operators, and what only makes operands for ours."""
    found = {node for node in graph.nodes if is_call(node, *FLOAT_CALLS) or _is_score(node)}
    calls = set(found)
    for node in reversed(list(graph.nodes)):
        if (
            node.op == "call_function"
            and node.users
            and all(user in found - calls or _is_float_operand(node, user) for user in node.users)
        ):
            found.add(node)
    return found


def _is_score(node: Node) -> bool:
    scored = OURS.slim_attention_scores.default
    return node.target is operator.getitem and is_call(node.args[0], scored) and node.args[1] == 1


def _float_operands(node: Node) -> tuple[int, ...]:
    schema = getattr(node.target, "_schema", None)
    return FLOAT_OPERANDS.get(schema.name, ()) if schema is not None else ()


def _is_float_operand(node: Node, user: Node) -> bool:
    apart = _float_operands(user)
    return bool(apart) and all(n in apart for n, each in enumerate(user.args) if each is node)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.float16)


def _narrowed(leaf: Any) -> Any:
    if leaf is torch.float32:
        return torch.float16
    if isinstance(leaf, float) and math.isfinite(leaf):
        return min(max(leaf, -LARGEST), LARGEST)
    return leaf

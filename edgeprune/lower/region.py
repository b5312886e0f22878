"""Regions of our operators as bytes, which ``backends/region`` reads and runs."""

from __future__ import annotations

import hashlib
import operator
import struct
from typing import Any

import torch
from torch.fx import Graph, Node

from edgeprune.errors import EdgepruneError
from edgeprune.lower.ops import ACTIVATIONS

VERSION = 2
LINE = 64
_HEADER = struct.Struct("<4sIIIIIQQQ")
_TENSOR = struct.Struct("<II4iQ")
_NODE = struct.Struct("<I7i3if")
_INPUT, _OUTPUT, _ARENA, _FLOATS, _INT8S = range(5)
# As in region.h, from 1 on; attention is one there, with scores or without.
_OPS = {
    "slim_attention": 1,
    "slim_attention_scores": 1,
    "add_layer_norm": 2,
    "linear_int8": 3,
    "token_select": 4,
}
_OPERANDS, _NUMBERS = 7, 3
_TYPES = (torch.float32, torch.float16)


def write_region(graph: Graph, constants: dict[Node, torch.Tensor]) -> bytes:
    """A graph of our operators, batch 1, as a region.

    Args:
        graph: placeholders, calls of ``torch.ops.edgeprune`` (in any dialect) and the parts of
            their results, an output.
        constants: what some of the placeholders hold.

    Raises:
        EdgepruneError: an operator or a tensor that no region can hold.
    """
    return _Writer(graph, constants).write()


class _Writer:
    def __init__(self, graph: Graph, constants: dict[Node, torch.Tensor]) -> None:
        self.nodes = [node for node in graph.nodes if node.op == "call_function"]
        self.calls = [node for node in self.nodes if node.target is not operator.getitem]
        self.inputs = [n for n in graph.nodes if n.op == "placeholder" and n not in constants]
        (results,) = graph.output_node().args
        self.outputs = list(results)  # type: ignore[arg-type]
        self.tensors: list[bytes] = []
        self.number: dict[Node, int] = {}
        self.held = {_FLOATS: bytearray(), _INT8S: bytearray()}
        self.constants = constants
        self.first: dict[tuple[object, ...], Node] = {}

    def write(self) -> bytes:
        for place, nodes in ((_INPUT, self.inputs), (_OUTPUT, self.outputs)):
            for number, node in enumerate(nodes):
                self._add(node, place, node.meta["val"], number)
        for node, value in self.constants.items():
            self._hold(node, value)
        offsets, arena = plan_memory(self._lifetimes())
        for node, offset in offsets.items():
            self._add(node, _ARENA, node.meta["val"], offset)
        calls = [self._call(node) for node in self.calls]
        floats, int8s = self.held[_FLOATS], self.held[_INT8S]
        header = _HEADER.pack(
            *(b"EPRG", VERSION, len(self.tensors), len(calls)),
            *(len(self.inputs), len(self.outputs), arena, len(floats), len(int8s)),
        )
        return b"".join((header, *self.tensors, *calls, floats, int8s))

    def _add(self, node: Node, place: int, like: torch.Tensor, offset: int) -> None:
        if place != _INT8S and like.dtype not in _TYPES or like.dim() > 4:
            raise EdgepruneError(f"{node.name}: {like.dtype} {list(like.shape)} in a region")
        dims = [1] * (4 - like.dim()) + [int(size) for size in like.shape]
        kind = 0 if place == _INT8S else _TYPES.index(like.dtype)
        self.number.setdefault(node, len(self.tensors))
        self.tensors.append(_TENSOR.pack(place, kind, *dims, offset))

    def _hold(self, node: Node, value: torch.Tensor) -> None:
        place = _INT8S if value.dtype == torch.int8 else _FLOATS
        data, held = value.detach().contiguous().numpy().tobytes(), self.held[place]
        same = (value.dtype, value.shape, hashlib.sha256(data).digest())
        if same in self.first:  # as where layers share their weights, which are then packed once
            self.number[node] = self.number[self.first[same]]
            return
        self.first[same] = node
        self._add(node, place, value, len(held))
        held += data
        held += bytes(-len(held) % 4)  # floats come after halves

    def _lifetimes(self) -> dict[Node, tuple[int, int, int]]:
        """Of every result that stays inside: first and last call, and its bytes."""
        order = {node: place for place, node in enumerate(self.nodes)}
        found = {}
        for node in self.nodes:
            if isinstance(node.meta["val"], torch.Tensor) and node not in self.outputs:
                born = order[node.args[0] if node.target is operator.getitem else node]  # type: ignore[index]
                dies = max((order[user] for user in node.users), default=born)
                found[node] = (born, dies, node.meta["val"].nbytes)
        return found

    def _call(self, node: Node) -> bytes:
        name = node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
        results = {n.args[1]: n for n in node.users if n.target is operator.getitem}
        x, *rest = node.args
        operands: list[Any] = [x]
        numbers: list[Any] = []
        real: Any = 0.0
        if name == "slim_attention":
            *sources, heads, groups, real, causal = rest
            operands += [*sources, node]
            numbers += [heads, groups, int(causal)]
        elif name == "slim_attention_scores":
            *sources, tokens, heads, groups, real, causal = rest
            operands += [*sources, results[0], results[1], tokens]
            numbers += [heads, groups, int(causal)]
        elif name == "add_layer_norm":
            *sources, real = rest
            operands += [*sources, results[0], results.get(1)]
        elif name == "linear_int8":
            *sources, activation = rest
            operands += [*sources, node]
            numbers += [list(ACTIVATIONS).index(activation)]
        elif name == "token_select":
            *sources, _, axis = rest
            operands += [*sources, node]
            numbers += [4 + axis]
        else:
            raise EdgepruneError(f"{node.name}: {name} in a region")
        places = [-1 if each is None else self.number[each] for each in operands]
        places += [-1] * (_OPERANDS - len(places))
        numbers += [0] * (_NUMBERS - len(numbers))
        return _NODE.pack(_OPS[name], *places, *numbers, real)


def arena_bytes(data: bytes) -> int:
    """What a region plans for the results between its nodes."""
    return int(_HEADER.unpack_from(data)[6])


def plan_memory(lifetimes: dict[Any, tuple[int, int, int]]) -> tuple[dict[Any, int], int]:
    """Offsets such that no two that live at the same time overlap, and the bytes in all.

    Args:
        lifetimes: (first, last, bytes) of each, both ends included.
    """
    placed: list[tuple[int, int, int, int]] = []
    offsets: dict[Any, int] = {}
    for key, (first, last, size) in sorted(lifetimes.items(), key=lambda item: -item[1][2]):
        offset = 0
        for start, end, born, dies in sorted(placed):
            if born <= last and first <= dies and offset < end and start < offset + size:
                offset = end
        end = -(-(offset + size) // LINE) * LINE
        offsets[key] = offset
        placed.append((offset, end, first, last))
    return offsets, max((end for _, end, *_ in placed), default=0)

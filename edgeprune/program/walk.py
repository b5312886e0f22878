"""A walk: all batches go through a graph together, from stop to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgeprune.program.graph import get_attribute

SAVED_BYTES = 2 << 30
"""What all batches together may hold at a stop; those beyond it start over from their inputs."""


class Walk:
    """One pass over the data, during which weights and statistics ahead may still change.

    Args:
        module: the graph; its tensors are read when their readers run.
        batches: its inputs.
    """

    def __init__(self, module: fx.GraphModule, batches: Sequence[tuple[Tensor, ...]]) -> None:
        self._module = module
        self._nodes = list(module.graph.nodes)
        self._place = {node: i for i, node in enumerate(self._nodes)}
        self._last = {n: max((self._place[u] for u in n.users), default=0) for n in self._nodes}
        inputs = [node for node in self._nodes if node.op == "placeholder"]
        self._starts = [dict(zip(inputs, batch, strict=True)) for batch in batches]
        self._saved: list[tuple[int, dict[fx.Node, Any]]] = [(0, start) for start in self._starts]

    def inputs_of(self, node: fx.Node) -> Iterator[Tensor]:
        """What ``node`` reads first, batch by batch. Stops come in graph order."""
        held = sum(_bytes(values) for _, values in self._saved)
        for number, (place, values) in enumerate(self._saved):
            before = _bytes(values)
            with torch.no_grad():
                values = self._run(dict(values), place, self._place[node])
            held += _bytes(values) - before
            if held <= SAVED_BYTES:
                self._saved[number] = (self._place[node], values)
            else:
                held -= _bytes(values) - _bytes(self._starts[number])
                self._saved[number] = (0, self._starts[number])
            yield values[node.args[0]]  # type: ignore[index]

    def _run(self, values: dict[fx.Node, Any], first: int, last: int) -> dict[fx.Node, Any]:
        for place in range(first, last):
            node = self._nodes[place]
            if node.op == "call_function":
                args, kwargs = fx.map_arg(
                    (node.args, node.kwargs), lambda n: self._value(n, values)
                )
                values[node] = node.target(*args, **kwargs)
                for source in node.all_input_nodes:
                    if self._last[source] <= place:
                        values.pop(source, None)
        return values

    def _value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return get_attribute(self._module, str(node.target))
        return values[node]


def _bytes(values: dict[fx.Node, Any]) -> int:
    return sum(each.nbytes for each in values.values() if isinstance(each, Tensor))

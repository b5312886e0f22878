"""Run a program again with a few tensors replaced, computing only what comes after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgeprune.program.graph import descendants, get_attribute
from edgeprune.program.program import as_tuple


class Replay:
    """Remembers what one pass computed, as far as later passes with replaced tensors need it.

    Args:
        module: the graph to run.
        batches: its inputs.
        paths: the weights and buffers that may be replaced.
    """

    def __init__(
        self, module: fx.GraphModule, batches: Sequence[tuple[Tensor, ...]], paths: Sequence[str]
    ) -> None:
        self.module = module
        self.batches = batches
        self._later = {path: self._after(path) for path in paths}
        frontier = {
            source
            for later in self._later.values()
            for node in later
            for source in node.all_input_nodes
            if source not in later and source.op != "get_attr"
        }
        self._known = [self._remember(batch, frontier) for batch in batches]

    def run(self, replaced: dict[str, Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """The outputs with some tensors replaced, batch by batch."""
        later = set().union(*(self._later[path] for path in replaced))
        for known in self._known:
            yield self._run(known, later, replaced)

    def _after(self, path: str) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and node.target == path:
                found |= descendants(node)
        return found

    @torch.no_grad()
    def _remember(self, batch: tuple[Tensor, ...], wanted: set[fx.Node]) -> dict[fx.Node, Any]:
        known: dict[fx.Node, Any] = {}

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if n in wanted:
                    known[n] = result
                return result

        Recorder(self.module).run(*batch)
        return known

    @torch.no_grad()
    def _run(
        self, known: dict[fx.Node, Any], later: set[fx.Node], replaced: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        values: dict[fx.Node, Any] = dict(known)
        pending = {node: len(node.users) for node in later}
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                path = str(node.target)
                values[node] = replaced.get(path, get_attribute(self.module, path))
            elif node.op == "output":
                return as_tuple(fx.map_arg(node.args[0], lambda n: values[n]))
            elif node in later:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
                values[node] = node.target(*args, **kwargs)
                for source in node.all_input_nodes:
                    if source in pending:
                        pending[source] -= 1
                        if not pending[source]:
                            del values[source]
        raise AssertionError("a graph ends with its output")

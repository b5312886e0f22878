"""Run a program again with a few tensors replaced, computing only what comes after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from edgeprune.program.batch_norm import Moments, batch_norms, carried, moments_of
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
        self._norms = {norm.node: norm for norm in batch_norms(module)}
        self._moments: dict[fx.Node, Moments] = {}
        self._known = [self._remember(batch, frontier) for batch in batches]

    def run(self, replaced: dict[str, Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """The outputs with some tensors replaced, batch by batch.

        Behind what is replaced, BatchNorms' statistics follow their inputs, as in recovery:
        without that the outputs of a cut network mean nothing.
        """
        later = set().union(*(self._later[path] for path in replaced))
        together = any(norm in later for norm in self._norms)
        groups = [self._known] if together else [[known] for known in self._known]
        for group in groups:
            yield from self._run(group, later, replaced)

    def _after(self, path: str) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and node.target == path:
                found |= descendants(node)
        return found

    @torch.no_grad()
    def _remember(self, batch: tuple[Tensor, ...], wanted: set[fx.Node]) -> dict[fx.Node, Any]:
        known: dict[fx.Node, Any] = {}
        norms, moments = self._norms, self._moments

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if n in norms:
                    found = moments_of([self.env[n.args[0]]])
                    moments[n] = moments[n] + found if n in moments else found
                if n in wanted:
                    known[n] = result
                return result

        Recorder(self.module).run(*batch)
        return known

    @torch.no_grad()
    def _run(
        self, known: Sequence[dict[fx.Node, Any]], later: set[fx.Node], replaced: dict[str, Tensor]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Node after node, each for all of these batches."""
        every: list[dict[fx.Node, Any]] = [dict(values) for values in known]
        tensors = dict(replaced)
        pending = {node: len(node.users) for node in later if node.op != "get_attr"}

        def read(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
            if node.op != "get_attr":
                return values[node]
            path = str(node.target)
            return tensors[path] if path in tensors else get_attribute(self.module, path)

        for node in self.module.graph.nodes:
            if node.op == "output":
                for values in every:
                    yield as_tuple(fx.map_arg(node.args[0], partial(read, values=values)))
            elif node in later and node.op != "get_attr":
                if node in self._norms:
                    tensors |= self._statistics(node, [read(node.args[0], v) for v in every])
                for values in every:
                    args, kwargs = fx.map_arg(
                        (node.args, node.kwargs), partial(read, values=values)
                    )
                    values[node] = node.target(*args, **kwargs)
                for source in node.all_input_nodes:
                    if source in pending:
                        pending[source] -= 1
                        if not pending[source]:
                            for values in every:
                                del values[source]

    def _statistics(self, node: fx.Node, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        norm = self._norms[node]
        mean, variance = (get_attribute(self.module, path) for path in (norm.mean, norm.variance))
        before, after = self._moments[node], moments_of(inputs)
        new = carried(mean, variance, before, after, norm.epsilon)
        return dict(zip((norm.mean, norm.variance), new, strict=True))

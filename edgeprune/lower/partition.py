"""Which nodes XNNPACK gets: the fewest regions there can be, the same ones every time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.passes.infra.partitioner import Partition

RULES_LOGGER = "executorch.backends.xnnpack.partition.config"


class RegionPartitioner(XnnpackPartitioner):
    """XNNPACK's own rules, with regions cut by depth instead of by pairwise merging.

    The stock partitioner walks sets of nodes, so region order, and with it the file's bytes,
    differ from run to run; it also leaves regions apart that could be one (21 instead of 15 for
    an int8 MiniLM) and takes quadratic time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reasons: dict[str, str] = {}

    def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[list[Any], Any]:
        """Operators to keep whole; no filter where all calls of an operator fare alike.

        ExecuTorch decomposes programs with a filter twice, which is a third of the time.
        """
        wanted, accepts = super().ops_to_not_decompose(ep)
        if accepts is None:
            return wanted, None
        fates: dict[Any, set[bool]] = {}
        for node in ep.graph.nodes:
            if node.op == "call_function" and node.target in wanted:
                fates.setdefault(node.target, set()).add(bool(accepts(node)))
        if any(len(fate) == 2 for fate in fates.values()):
            return wanted, accepts
        return [target for target, fate in fates.items() if fate == {True}], None

    def generate_partitions(self, ep: ExportedProgram) -> list[Partition]:
        with _refusals() as reasons:
            groups = self.get_matched_nodes_from_configs(ep)
        self.reasons.update(reasons)
        return [
            Partition(id=number, nodes=nodes)
            for number, nodes in enumerate(regions(ep.graph_module.graph, groups))
        ]


def regions(graph: Graph, groups: Iterable[Iterable[Node]]) -> list[list[Node]]:
    """Delegated nodes by depth: how often a path to them changes between delegate and CPU.

    Two delegated nodes of one depth have no CPU node on a path between them, so a depth is one
    region without cycles.

    Args:
        groups: delegated nodes with their weights; those in one group must share a region.
    """
    group_of = {node: number for number, group in enumerate(groups) for node in group}
    depth: dict[Node, int] = {}
    floor: dict[int, int] = {}
    settled = False
    while not settled:
        settled = True
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            group = group_of.get(node)
            lowest = max((depth.get(source, -1) for source in node.all_input_nodes), default=-1)
            if group is None:
                reached = lowest + (lowest % 2 == 0)
            else:
                reached = max(lowest + lowest % 2, floor.get(group, 0))
                floor[group] = reached
            settled &= depth.get(node) == reached
            depth[node] = reached
    found: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node in group_of:
            found.setdefault(floor[group_of[node]], []).append(node)
    return [found[level] for level in sorted(found)]


@contextmanager
def _refusals() -> Iterator[dict[str, str]]:
    """Collect what XNNPACK's rules say about nodes they refuse, by node name."""
    reasons: dict[str, str] = {}

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            refusal: Any = record.msg
            if getattr(refusal, "node", None) is not None:
                reasons.setdefault(refusal.node.name, str(refusal.reason))

    logger, handler = logging.getLogger(RULES_LOGGER), Collect(logging.DEBUG)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate

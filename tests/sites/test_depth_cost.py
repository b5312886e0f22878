"""Analysis looks at each branch alone: what it costs grows with the network's length, no faster."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from edgeprune.program import capture
from edgeprune.program.graph import ancestors, descendants
from edgeprune.sites.depth import between, find_residuals


class Steps(nn.Module):
    """A chain of small residual branches."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = x + step(x).relu()
        return x


class Counted(dict[fx.Node, int]):
    """An order that counts how often it is asked."""

    asked = 0

    def __getitem__(self, node: fx.Node) -> int:
        self.asked += 1
        return super().__getitem__(node)


def test_what_lies_between_is_what_both_ends_reach() -> None:
    module = capture(Steps(4), (torch.randn(2, 4),)).module
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    for entry in nodes:
        for end in nodes:
            wanted = (ancestors(end) & descendants(entry)) - {entry}
            assert between(entry, end, order) == wanted


def test_a_branch_costs_the_same_in_a_deep_network_as_in_a_shallow_one() -> None:
    asked = []
    for depth in (3, 30):
        module = capture(Steps(depth), (torch.randn(2, 4),)).module
        order = Counted((node, i) for i, node in enumerate(module.graph.nodes))
        last = find_residuals(module)[-1]
        between(last.entry, last.branch, order)
        asked.append(order.asked)
    assert asked[0] == asked[1] > 0

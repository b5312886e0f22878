"""Our operators in a graph compute what stood there before."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from test_attention import CASES, Attention, T
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from edgeprune.lower import Lowering
from edgeprune.lower.graph import aten, is_call
from edgeprune.lower.prepare import prepare
from edgeprune.lower.slim import OURS, fuser, is_ours

INT8 = Lowering("int8", isa=("avx512_vnni",))


def fused(module: nn.Module, inputs: tuple[Tensor, ...], lowering: Lowering) -> GraphModule:
    return prepare(module.eval(), inputs, *fuser(lowering))


def counted(graph: GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in graph.graph.nodes if is_ours(node))


@pytest.mark.parametrize("case", CASES)
def test_attention_becomes_one_call_on_what_the_projections_write(case: str) -> None:
    module, mask = CASES[case]
    inputs = (torch.randn(1, T, 16),) if mask is None else (torch.randn(1, T, 16), mask)
    graph = fused(module, inputs, Lowering())
    assert counted(graph) == {"edgeprune.slim_attention.default": 1}
    assert not any(is_call(n, aten.permute.default, aten.bmm.default) for n in graph.graph.nodes)
    torch.testing.assert_close(graph(*inputs), module(*inputs), atol=1e-5, rtol=1e-5)


def test_grouped_keys_are_read_in_place() -> None:
    module, mask = CASES["repeated keys"]
    assert mask is not None
    graph = fused(module, (torch.randn(1, T, 16), mask), Lowering())
    (call,) = filter(is_ours, graph.graph.nodes)
    heads, groups = call.args[4:6]
    assert (heads, groups) == (4, 2)


def test_heads_wider_than_the_kernel_takes_stay_as_they_were() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x)

    graph = fused(Wide(), (torch.randn(1, 2, 5, 129),), Lowering())
    assert not counted(graph)
    assert sum(is_call(node, aten.bmm.default) for node in graph.graph.nodes) == 2


class PreNorm(nn.Module):
    """Two residual sums, each read by a norm and by the next sum, as in a vision transformer."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(8), nn.LayerNorm(8, bias=bias)
        for norm in (self.one, self.two):
            nn.init.normal_(norm.weight)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first = x + y
        second = first + self.down(functional.gelu(self.up(self.one(first))))
        return second * self.two(second)


@pytest.mark.parametrize("bias", [True, False])
def test_a_residual_sum_comes_out_of_the_norm_that_reads_it(bias: bool) -> None:
    module, inputs = PreNorm(bias), (torch.randn(1, 5, 8), torch.randn(1, 5, 8))
    graph = fused(module, inputs, Lowering())
    assert counted(graph) == {"edgeprune.add_layer_norm.default": 2}
    assert not any(is_call(node, aten.add.Tensor) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(*inputs), module(*inputs), atol=1e-5, rtol=1e-5)


def test_a_sum_that_broadcasts_stays_outside_the_norm() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.norm(x + shift)

    module, inputs = Shifted(), (torch.randn(1, 5, 8), torch.randn(8))
    graph = fused(module, inputs, Lowering())
    (call,) = filter(is_ours, graph.graph.nodes)
    assert call.args[1] is None
    torch.testing.assert_close(graph(*inputs), module(*inputs), atol=1e-5, rtol=1e-5)


def test_linears_are_ours_in_int8_where_they_win_and_take_their_activation_in() -> None:
    module, inputs = PreNorm(), (torch.randn(1, 5, 8), torch.randn(1, 5, 8))
    graph = fused(module, inputs, INT8)
    linears = [n for n in graph.graph.nodes if is_call(n, OURS.linear_int8.default)]
    assert [node.args[-1] for node in linears] == ["gelu", "none"]
    assert not any(is_call(n, aten.linear.default, aten.gelu.default) for n in graph.graph.nodes)
    wanted = module(*inputs)
    assert (graph(*inputs) - wanted).abs().max() < 0.03 * wanted.abs().max()
    for other in (Lowering(isa=INT8.isa), Lowering("int8"), Lowering("int8", isa=("neon",))):
        assert "edgeprune.linear_int8.default" not in counted(fused(module, inputs, other))


def test_an_activation_that_is_not_alone_stays_outside() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y + functional.relu(y)

    graph = fused(Read(), (torch.randn(1, 5, 8),), INT8)
    (linear,) = filter(is_ours, graph.graph.nodes)
    assert linear.args[-1] == "none"
    assert sum(is_call(node, aten.relu.default) for node in graph.graph.nodes) == 1


def test_nothing_is_ours_where_the_delegate_is_off() -> None:
    graph = fused(Attention(), (torch.randn(1, T, 16),), Lowering("int8", "executorch", "off"))
    assert not counted(graph)

"""Attention rewritten for the mobile runtimes equals attention as PyTorch defines it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.lower.graph import aten, is_call
from edgeprune.lower.prepare import prepare

T, HEADS, GROUPS, HEAD = 7, 4, 2, 8


class Attention(nn.Module):
    """Projections and one attention call with fixed options."""

    def __init__(self, groups: int = HEADS, repeat: bool = False, **options: Any) -> None:
        super().__init__()
        self.groups, self.repeat, self.options = groups, repeat, options
        self.query = nn.Linear(16, HEADS * HEAD)
        self.key, self.value = nn.Linear(16, groups * HEAD), nn.Linear(16, groups * HEAD)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query = self.query(x).view(1, -1, HEADS, HEAD).transpose(1, 2)
        key, value = (
            layer(x).view(1, -1, self.groups, HEAD).transpose(1, 2)
            for layer in (self.key, self.value)
        )
        if self.repeat:
            times = HEADS // self.groups
            key, value = (
                part[:, :, None].expand(1, self.groups, times, T, HEAD).reshape(1, HEADS, T, HEAD)
                for part in (key, value)
            )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, **self.options
        )
        return mixed.transpose(1, 2).reshape(1, -1, HEADS * HEAD)


def additive(*shape: int) -> Tensor:
    return torch.where(torch.rand(shape) > 0.3, 0.0, -1e9)


CASES = {
    "plain": (Attention(), None),
    "key mask": (Attention(), additive(1, 1, 1, T)),
    "full mask per head": (Attention(), additive(1, HEADS, T, T)),
    "two-dimensional mask": (Attention(), additive(T, T)),
    "boolean mask": (Attention(), torch.ones(1, 1, T, T, dtype=torch.bool).tril()),
    "causal": (Attention(is_causal=True), None),
    "own scale": (Attention(scale=0.25), None),
    "scale one": (Attention(scale=1.0), None),
    "grouped": (Attention(GROUPS, enable_gqa=True), None),
    "grouped, key mask": (Attention(GROUPS, enable_gqa=True), additive(1, 1, 1, T)),
    "grouped, full mask": (Attention(GROUPS, enable_gqa=True), additive(1, HEADS, T, T)),
    "grouped, causal": (Attention(GROUPS, enable_gqa=True, is_causal=True), None),
    "repeated keys": (Attention(GROUPS, repeat=True), additive(1, 1, T, T)),
}


@pytest.mark.parametrize("case", CASES)
def test_rewritten_attention_equals_the_original(case: str) -> None:
    module, mask = CASES[case]
    inputs = (torch.randn(1, T, 16),) if mask is None else (torch.randn(1, T, 16), mask)
    graph = prepare(module.eval(), inputs)
    targets = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert not any(is_call(n, aten.scaled_dot_product_attention.default) for n in targets)
    assert sum(is_call(n, aten.bmm.default) for n in targets) == 2
    torch.testing.assert_close(graph(*inputs), module(*inputs), atol=1e-5, rtol=1e-5)


def test_repeated_key_heads_are_read_in_place() -> None:
    module, mask = CASES["repeated keys"]
    assert mask is not None
    graph = prepare(module.eval(), (torch.randn(1, T, 16), mask))
    assert not any(is_call(node, aten.expand.default) for node in graph.graph.nodes)


def test_the_scale_is_folded_into_the_query_projection() -> None:
    module = Attention().eval()
    graph = prepare(module, (torch.randn(1, T, 16),))
    assert not any(is_call(node, aten.mul.Tensor) for node in graph.graph.nodes)


def test_the_scale_stays_a_node_when_the_query_is_read_elsewhere() -> None:
    class Shared(Attention):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            query = self.query(x)
            split = query.view(1, T, HEADS, HEAD).transpose(1, 2)
            mixed = functional.scaled_dot_product_attention(split, split, split)
            return query + mixed.transpose(1, 2).reshape(1, T, HEADS * HEAD)

    module, x = Shared().eval(), torch.randn(1, T, 16)
    torch.testing.assert_close(prepare(module, (x,))(x), module(x), atol=1e-5, rtol=1e-5)


def test_each_projection_reaches_its_matmul_in_one_reshape_and_one_permute() -> None:
    graph = prepare(Attention().eval(), (torch.randn(1, T, 16),))
    reshapes = [n for n in graph.graph.nodes if is_call(n, aten.reshape.default)]
    permutes = [n for n in graph.graph.nodes if is_call(n, aten.permute.default)]
    assert (len(reshapes), len(permutes)) == (4, 4)


def test_a_fully_masked_row_stays_finite() -> None:
    module, mask = Attention().eval(), torch.full((1, 1, T, T), -1e9)
    x = torch.randn(1, T, 16)
    assert prepare(module, (x, mask))(x, mask).isfinite().all()


@pytest.mark.parametrize("mask", [None, (3, 1, T, T), (1, HEADS, T, T), (3, HEADS, 1, T), (T, T)])
def test_attention_in_windows_equals_the_original(mask: tuple[int, ...] | None) -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor, *bias: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x, *bias)

    inputs = (torch.randn(3, HEADS, T, HEAD), *([] if mask is None else [torch.randn(mask)]))
    graph = prepare(Windows(), inputs)
    torch.testing.assert_close(graph(*inputs), Windows()(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keys", [(1, 2, 1, HEAD, T), (2, 3, HEAD, T), (1, 1, HEAD, T), (HEAD,)])
def test_products_that_broadcast_in_any_way_equal_the_original(keys: tuple[int, ...]) -> None:
    class Product(nn.Module):
        def forward(self, one: Tensor, two: Tensor) -> Tensor:
            return one @ two

    lead = (1, 2, 3) if len(keys) != 4 else (1, 2, 3)[-len(keys) + 2 :]
    inputs = (torch.randn(*lead, T, HEAD), torch.randn(keys))
    graph = prepare(Product(), inputs)
    torch.testing.assert_close(graph(*inputs), Product()(*inputs), atol=1e-5, rtol=1e-5)

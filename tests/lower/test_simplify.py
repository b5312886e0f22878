"""Simplified graphs compute the same with fewer nodes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from edgeprune.lower.graph import aten, is_call
from edgeprune.lower.prepare import prepare


def calls(graph: GraphModule, *targets: object) -> int:
    return sum(is_call(node, *targets) for node in graph.graph.nodes)  # type: ignore[arg-type]


class Chain(nn.Module):
    """Reshapes and permutes drawn at random, then something that is not a reshape."""

    def __init__(self, steps: list[tuple[str, tuple[int, ...]]]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        for kind, how in self.steps:
            x = x.reshape(how) if kind == "reshape" else x.permute(how)
        return x * 2.0


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[str, tuple[int, ...]]]:
    steps: list[tuple[str, tuple[int, ...]]] = []
    rank = 3
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            shape = draw(st.permutations([2, 3, 4] + [1] * draw(st.integers(0, 2))))
            steps.append(("reshape", tuple(shape)))
            rank = len(shape)
        else:
            steps.append(("permute", tuple(draw(st.permutations(range(rank))))))
    return steps


@settings(max_examples=15, deadline=None)
@given(chains())
def test_merged_reshapes_move_every_number_to_the_same_place(
    steps: list[tuple[str, tuple[int, ...]]],
) -> None:
    module, x = Chain(steps), torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(prepare(module, (x,))(x), module(x))


def test_views_of_views_become_one() -> None:
    module = Chain([("reshape", (4, 6)), ("reshape", (24,)), ("reshape", (8, 3))])
    assert calls(prepare(module, (torch.randn(2, 3, 4),)), aten.reshape.default) == 1


def test_a_permute_and_its_inverse_vanish() -> None:
    module = Chain([("permute", (2, 0, 1)), ("permute", (1, 2, 0))])
    graph = prepare(module, (torch.randn(2, 3, 4),))
    assert calls(graph, aten.permute.default, aten.reshape.default) == 0


def test_what_depends_on_no_input_is_computed_once() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table(torch.arange(x.shape[1]))

    module, x = Positions(), torch.randn(1, 6, 4)
    graph = prepare(module, (x,))
    assert calls(graph, aten.embedding.default, aten.arange.default) == 0
    torch.testing.assert_close(graph(x), module(x))


def test_tanh_gelu_is_written_out_because_xnnpack_would_run_the_exact_form() -> None:
    class Gelu(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.gelu(x, approximate="tanh")

    x = torch.linspace(-4, 4, 101)[None]
    graph = prepare(Gelu(), (x,))
    assert calls(graph, aten.gelu.default) == 0
    torch.testing.assert_close(graph(x), Gelu()(x), atol=1e-6, rtol=1e-6)


def test_equal_computations_are_shared() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (x + (1.0 - mask) * -1e9) * 2.0 + (1.0 - mask) * -1e9

    graph = prepare(Twice(), (torch.randn(1, 4), torch.ones(1, 4)))
    assert calls(graph, aten.rsub.Scalar) == 1


def test_modules_that_write_in_place_keep_their_meaning() -> None:
    class InPlace(nn.Module):
        base: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("base", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            copy = self.base.clone()
            copy.add_(1.0)
            return x.clone().mul_(copy) + self.base

    module, x = InPlace(), torch.randn(1, 4)
    torch.testing.assert_close(prepare(module, (x,))(x), x)
    assert torch.equal(module.base, torch.zeros(4))


def test_the_given_module_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    before = [parameter.clone() for parameter in module.parameters()]
    prepare(module, (torch.randn(1, 4),))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))

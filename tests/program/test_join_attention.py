"""Attention written out becomes PyTorch's own call, where that is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import noise, relative_error
from torch import Tensor, nn

from edgeprune.program import Program, capture
from edgeprune.program.graph import ATEN, calls
from edgeprune.sites import find_sites

HEADS, TOKENS, WIDTH = 4, 6, 16

Mix = Callable[["Written", Tensor, Tensor, Tensor, Tensor], Tensor]


class Written(nn.Module):
    """One attention sub-layer over [batch, tokens, width] with a mask [batch, tokens]."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("bias", noise(1, HEADS, TOKENS, TOKENS, seed=1))
        self.mix = mix

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        parts = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        mixed = self.mix(self, *parts, real[:, None, None].bool())
        return (x + self.out(mixed.transpose(1, 2).flatten(2)))[:, 0]


def scaled(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1) @ v


def scaled_before(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    return ((q * 0.5) @ (k.transpose(-1, -2) / 3)).softmax(-1) @ v


def biased(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    blocked = torch.zeros(()).masked_fill(~real, torch.finfo(q.dtype).min)
    return (blocked + (self.bias + q @ k.mT) * 0.5).softmax(-1) @ v


def filled(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~real, -torch.inf).softmax(-1) @ v


def chosen(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    return torch.where(real, q @ k.mT + 3, -1e9).softmax(-1) @ v


def joined(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    scores = torch.bmm(q, k.mT).unflatten(0, (-1, HEADS)) + self.bias
    mixed = torch.bmm(scores.softmax(-1).flatten(0, 1), v)
    return mixed.unflatten(0, (-1, HEADS))


def over_queries(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-2) @ v


def read_twice(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    scores = q @ k.mT
    return scores.softmax(-1) @ v + scores.mean(-1, keepdim=True)


def probabilities_read(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    probabilities = (q @ k.mT).softmax(-1)
    return probabilities @ v * probabilities.amax(-1, keepdim=True)


def learned_scale(self: Written, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    return (q @ k.mT * self.temperature).softmax(-1) @ v


def captured(mix: Mix) -> tuple[Written, Program, int]:
    """(the model, its program, how many attention calls there are)."""
    model = Written(mix).eval()
    program = capture(model, (noise(3, TOKENS, WIDTH, seed=0), padding(3)))
    return model, program, len([*calls(program.module.graph, ATEN.scaled_dot_product_attention)])


def padding(batch: int) -> Tensor:
    return (torch.arange(TOKENS)[None] < torch.tensor([[6], [3], [1]])[:batch]).long()


@pytest.mark.parametrize("mix", [scaled, scaled_before, biased, filled, chosen, joined])
def test_written_out_attention_becomes_one_call_that_gives_the_same(mix: Mix) -> None:
    model, program, count = captured(mix)
    assert count == 1
    given = (noise(2, TOKENS, WIDTH, seed=5), padding(2))
    assert relative_error(program(*given), model(*given)) <= 1e-5
    left = {ATEN.softmax.int, ATEN.masked_fill.Scalar, ATEN.where.self, ATEN.where.ScalarOther}
    assert not left & {node.target for node in program.module.graph.nodes}
    found = find_sites(program)
    assert found.get("heads").units == HEADS
    assert found.get("tokens").why_not is None


@pytest.mark.parametrize("mix", [over_queries, read_twice, probabilities_read, learned_scale])
def test_what_is_no_plain_attention_stays_as_it_is(mix: Mix) -> None:
    assert captured(mix)[2] == 0


def test_one_head_without_a_head_dimension_is_attention_too() -> None:
    class OneHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).sum(1)

    program = capture(OneHead().eval(), (noise(3, TOKENS, WIDTH, seed=0),))
    assert [*calls(program.module.graph, ATEN.scaled_dot_product_attention)]

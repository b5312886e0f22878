"""Sites in sequence models: look-ups by number, repeats, nested layers, two sequences."""

from __future__ import annotations

import re

import pytest
import torch
from models import WIDTH, FusedBlock, noise, relative_error
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply, masked

SOURCE, TARGET = 6, 4


class Reads(nn.Module):
    """Hidden units [batch, units] by way of something that moves them."""

    def __init__(self, move: object) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 10), nn.LazyLinear(3)
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.move(self.up(x).relu()))  # type: ignore[operator]


def reading(move: object) -> Sites:
    model = Reads(move).eval()
    model(noise(3, 8, seed=0))
    return find_sites(capture(model, (noise(3, 8, seed=0),)))


def test_a_look_up_along_another_dimension_leaves_units_free() -> None:
    places = torch.tensor([[1], [0]]).expand(2, 10)

    def move(x: Tensor) -> Tensor:
        both = torch.stack([x, x + 1], 1)
        return both.gather(1, places.expand(x.shape[0], 2, 10)).sum(1)

    found = reading(move)
    assert not found.flow.unknown
    plan = Plan(found.program.fingerprint, {"neurons": (0, 3, 4)})
    given = noise(5, 8, seed=1)
    got, wanted = apply(found.program, plan, found)(given), masked(found, plan)(given)
    assert relative_error(got, wanted) <= 1e-5


@pytest.mark.parametrize(
    ("move", "why_not"),
    [
        (lambda x: x.gather(1, (x * 0).long() + 2), r"gather .* takes entries by their number"),
        (lambda x: x.repeat(1, 2), r"repeat .* repeats it"),
    ],
)
def test_what_is_looked_up_or_repeated_stays(move: object, why_not: str) -> None:
    (site,) = (site for site in reading(move).sites if ("up.weight", 0) in site.weights)
    assert re.search(why_not, site.why_not or "")


class Nested(nn.Module):
    """Sub-layers that are numbered inside a numbered layer."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleList([_Attention(WIDTH), _FeedForward()])
        self.blocks = nn.ModuleList([block, nn.ModuleList([_Attention(WIDTH), _FeedForward()])])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            for part in block:  # type: ignore[attr-defined]
                x = x + part(x)
        return x.sum(1)


class _FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class _Attention(nn.Module):
    """Queries from one sequence, keys and values from another or the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.both = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        parts = (self.query(x), *self.both(memory).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_sub_layers_with_numbers_of_their_own_belong_to_the_layer_around_them() -> None:
    found = find_sites(capture(Nested().eval(), (noise(3, SOURCE, WIDTH, seed=0),)))
    names = [f"blocks.{i}.{word}" for i in range(2) for word in ("attention", "ffn")]
    assert [residual.name for residual in found.residuals] == names
    assert [layer.name for layer in found.layers] == ["blocks.0", "blocks.1"]
    plan = Plan(found.program.fingerprint, {"blocks.1": ()})
    assert apply(found.program, plan, found).parameters == found.program.parameters // 2


class TwoSequences(nn.Module):
    """An encoder layer and attention from another sequence to its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([FusedBlock(sliced=False)])
        self.cross = _Attention(WIDTH)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.layers[0](source)
        target = target.sin()
        return target + self.cross(target, memory)


def test_tokens_of_an_encoder_may_be_dropped_before_cross_attention() -> None:
    given = (noise(3, SOURCE, WIDTH, seed=0), noise(3, TARGET, WIDTH, seed=1))
    found = find_sites(capture(TwoSequences().eval(), given))
    (stream,) = found.streams
    assert stream.why_not is None
    plan = Plan(found.program.fingerprint, {}, {stream.name: 2})
    assert apply(found.program, plan, found)(*given).shape == (3, TARGET, WIDTH)

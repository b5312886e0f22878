"""What is reduced or sorted over space leaves channels free; over the channels it keeps them."""

from __future__ import annotations

import pytest
import torch
from nets import Do, found_in, units, worst_cut
from torch import nn

WIDTH = 8


@pytest.mark.parametrize(
    "layer",
    [
        Do(lambda x: x.std((2, 3), keepdim=True) + x),
        Do(lambda x: x * x.logsumexp((2, 3), keepdim=True)),
        Do(lambda x: x.std((2, 3), False, True) * x),
        Do(lambda x: x.flatten(2).topk(4, -1).values.unflatten(2, (2, 2))),
        Do(lambda x: x.sort(-1, descending=True).values),
        Do(lambda x: x * x.median(-1, keepdim=True).values),
        Do(lambda x: x + x.argmax(-1, keepdim=True)),
        Do(lambda x: x + x.new_full((WIDTH, 1, 1), 0.5) + torch.ones_like(x)),
    ],
)
def test_channels_pass_through_and_are_cut_exactly(layer: nn.Module) -> None:
    found = found_in(layer, WIDTH, WIDTH)
    assert units(found) == {"channels": ("channels", WIDTH)}
    assert worst_cut(found) <= 1e-9


@pytest.mark.parametrize(
    "layer",
    [
        Do(lambda x: x + x.logsumexp(1, keepdim=True)),
        Do(lambda x: x.sort(1).values),
        Do(lambda x: x.topk(WIDTH, 1).values),
        Do(lambda x: x + x.argmin(1, keepdim=True)),
        Do(lambda x: x + x.median(1, keepdim=True).values),
    ],
)
def test_channels_that_are_compared_stay(layer: nn.Module) -> None:
    found = found_in(layer, WIDTH, WIDTH)
    assert not units(found)
    assert any("runs over it" in (site.why_not or "") for site in found.sites)


@pytest.mark.parametrize(
    "layer", [Do(lambda x: x / x.std(1, keepdim=True)), Do(lambda x: x / x.std(unbiased=False))]
)
def test_a_spread_over_channels_is_of_what_is_left(layer: nn.Module) -> None:
    (site,) = (site for site in found_in(layer, WIDTH, WIDTH).cuttable if site.axis == "channels")
    assert site.inexact is not None and "std" in site.inexact

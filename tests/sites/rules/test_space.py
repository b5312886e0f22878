"""Pooling, resampling, borders and shifts leave channels free and cuts exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import Do, found_in, units, worst_cut
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.plan import Plan
from edgeprune.surgery import apply

WIDTH = 8


@pytest.mark.parametrize(
    ("layer", "space"),
    [
        (nn.MaxPool1d(2), 1),
        (nn.MaxPool3d(2), 3),
        (nn.AvgPool3d(2), 3),
        (nn.AdaptiveAvgPool1d(3), 1),
        (nn.AdaptiveAvgPool3d(1), 3),
        (nn.AdaptiveMaxPool2d(2), 2),
        (nn.Upsample(scale_factor=2), 1),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 2),
        (nn.Upsample(scale_factor=2, mode="trilinear"), 3),
        (nn.ReflectionPad2d(1), 2),
        (nn.ZeroPad2d((1, 0, 2, 0)), 2),
        (Do(lambda x: x.roll((1, -1), (2, 3))), 2),
        (Do(lambda x: x.flip(-1)), 2),
        (Do(lambda x: x[:, :, ::2, 1::2]), 2),
        (Do(lambda x: x.max(-1).values[..., None] * x), 2),
    ],
)
def test_channels_pass_through_and_are_cut_exactly(layer: nn.Module, space: int) -> None:
    found = found_in(layer, WIDTH, WIDTH, space)
    assert units(found) == {"channels": ("channels", WIDTH)}
    assert worst_cut(found) <= 1e-9


@pytest.mark.parametrize(
    ("layer", "after", "expected"),
    [
        (nn.PixelShuffle(2), WIDTH // 4, [("channels", WIDTH // 4)]),
        (nn.PixelUnshuffle(2), WIDTH * 4, [("channels", WIDTH)]),
        (nn.ChannelShuffle(2), WIDTH, [("channels", WIDTH // 2)]),
        (nn.PReLU(WIDTH), WIDTH, [("channels", WIDTH)]),
        (nn.PReLU(), WIDTH, [("channels", WIDTH)]),
    ],
)
def test_channels_dealt_out_over_space_or_groups_are_cut_exactly(
    layer: nn.Module, after: int, expected: list[tuple[str, int]]
) -> None:
    found = found_in(layer, WIDTH, after)
    assert list(units(found).values()) == expected
    assert worst_cut(found) <= 1e-9


@pytest.mark.parametrize(
    ("layer", "why_not"),
    [
        (lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:-1], "gives it a border"),
        (lambda x: x.roll(1, 1), "moves its entries"),
        (lambda x: x.roll(1), "moves its entries"),
        (lambda x: x * x.max(1, keepdim=True).values, "runs over it"),
    ],
)
def test_what_reads_channels_by_their_place_says_so(
    layer: Callable[[Tensor], Tensor], why_not: str
) -> None:
    found = found_in(Do(layer), WIDTH, WIDTH)
    (reason,) = {site.why_not for site in found.sites if "before.weight" in dict(site.weights)} - {
        "it is an input of the model"
    }
    assert reason is not None and why_not in reason


@pytest.mark.parametrize("count", [1, 4, WIDTH])
def test_whole_groups_of_a_group_norm_leave_exactly(count: int) -> None:
    layer = nn.GroupNorm(count, WIDTH)
    nn.init.normal_(layer.weight)
    found = found_in(layer, WIDTH, WIDTH)
    axis = "channels" if count == WIDTH else "groups"
    assert list(units(found).values()) == ([(axis, count)] if count > 1 else [])
    assert worst_cut(found) <= 1e-9


def test_an_instance_norm_leaves_channels_free() -> None:
    found = found_in(nn.InstanceNorm2d(WIDTH, affine=True), WIDTH, WIDTH)
    assert units(found) == {"channels": ("channels", WIDTH)}
    assert worst_cut(found) <= 1e-9


def test_what_follows_an_unknown_operator_is_cut_for_any_batch() -> None:
    layer = nn.Sequential(
        Do(lambda x: x.cummax(-1).values),
        nn.Conv2d(WIDTH, 6, 1),
        Do(lambda x: x.flatten(1).unflatten(1, (6, 8, 8))),
    )
    found = found_in(layer, WIDTH, 6)
    assert [str(node.target) for node in found.flow.unknown] == ["aten.cummax.default"]
    assert units(found) == {"channels": ("channels", 6)}
    assert worst_cut(found) <= 1e-9
    (example,) = found.program.example_inputs
    slim = apply(found.program, Plan(found.program.fingerprint, {"channels": (1, 4)}), found)
    assert slim(torch.cat([example, example])).shape[0] == 4

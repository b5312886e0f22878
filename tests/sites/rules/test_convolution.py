"""Convolutions with groups, and transposed ones: what may leave, and that it leaves exactly."""

from __future__ import annotations

import pytest
import torch
from nets import found_in, units, worst_cut
from torch import nn

from edgeprune.plan import Plan
from edgeprune.surgery import apply


@pytest.mark.parametrize(
    ("layer", "width", "after", "expected"),
    [
        # groups x 4 in, groups x 2 out
        (
            nn.Conv2d(12, 6, 3, groups=3),
            *(12, 6),
            {"groups": ("groups", 3), "channels": ("channels", 4), "channels_2": ("channels", 2)},
        ),
        # depthwise: a channel leaves with its filter
        (nn.Conv2d(6, 6, 3, groups=6), 6, 6, {"channels": ("channels", 6)}),
        # depthwise with a multiplier: also the same one of every channel's two filters
        (
            nn.Conv2d(6, 12, 3, groups=6),
            *(6, 12),
            {"channels": ("channels", 6), "channels_2": ("channels", 2)},
        ),
        (
            nn.ConvTranspose2d(6, 4, 3, stride=2),
            *(6, 4),
            {"channels": ("channels", 6), "channels_2": ("channels", 4)},
        ),
        (
            nn.ConvTranspose2d(6, 4, 2, groups=2),
            *(6, 4),
            {"groups": ("groups", 2), "channels": ("channels", 3), "channels_2": ("channels", 2)},
        ),
    ],
)
def test_groups_and_the_channels_within_leave_exactly(
    layer: nn.Module, width: int, after: int, expected: dict[str, tuple[str, int]]
) -> None:
    found = found_in(layer, width, after)
    assert sorted(units(found).values()) == sorted(expected.values())
    assert worst_cut(found) <= 1e-9


@pytest.mark.parametrize(
    ("layer", "space"),
    [
        (nn.Conv1d(6, 6, 3, groups=2), 1),
        (nn.Conv3d(6, 4, 3), 3),
        (nn.ConvTranspose1d(6, 4, 3), 1),
        (nn.ConvTranspose3d(6, 4, 2, stride=2), 3),
    ],
)
def test_convolutions_of_every_rank_are_cut(layer: nn.Module, space: int) -> None:
    found = found_in(layer, 6, 6 if space == 1 and not layer.transposed else 4, space)
    assert units(found) and worst_cut(found) <= 1e-9


def test_a_cut_group_takes_its_filters_and_the_count_follows() -> None:
    found = found_in(nn.Conv2d(12, 6, 3, groups=3), 12, 6)
    (groups,) = (site.name for site in found.cuttable if site.axis == "groups")
    slim = apply(found.program, Plan(found.program.fingerprint, {groups: (0, 2)}), found)
    shapes = {path: tuple(tensor.shape) for path, tensor in slim.tensors.items()}
    assert shapes["before.weight"] == (8, 3, 1, 1)
    assert shapes["layer.weight"] == (4, 4, 3, 3)
    assert shapes["after.weight"] == (2, 4, 1, 1)
    calls = [n for n in slim.module.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    assert [node.args[6] for node in calls if len(node.args) > 6] == [2]

"""Lengths of the inputs: which dimensions can be made smaller, by which steps, and why not."""

from __future__ import annotations

from pathlib import Path

import lengths
import pytest
import torch
from models import program, sites
from torch import Tensor, nn
from torch.nn import functional
from transformers import SwinConfig, SwinModel

from edgeprune import files
from edgeprune.inspect import rows_of, verdict
from edgeprune.program import capture
from edgeprune.sites import Sites, find_sites


def captured(model: nn.Module, *size: int) -> Sites:
    return find_sites(capture(model, (torch.randn(2, *size),)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cloud", {"points.points": (30, 1)}),
        ("keywords", {"sound.time": (24, 1)}),
        ("frames", {"frames.time": (20, 1)}),
        ("clip", {"clip.time": (6, 1), "clip.resolution": (16, 1)}),
        ("picture", {"picture.resolution": (32, 1)}),
        ("patches", {"picture.resolution": (16, 8)}),
    ],
)
def test_the_axis_and_its_step_follow_from_the_graph(
    name: str, expected: dict[str, tuple[int, int]]
) -> None:
    found = find_sites(lengths.build(name)[1])
    listed = [site for site in found.cuttable if site.name in found.lengths]
    assert {site.name: (site.units, site.step) for site in listed} == expected
    assert all(site.kind == "length" and site.name.endswith(site.axis) for site in listed)


def test_a_vision_transformer_shrinks_by_whole_patches() -> None:
    site = sites("vit").get("pixels.resolution")
    assert (site.axis, site.units, site.step, site.why_not) == ("resolution", 16, 4, None)


def test_a_text_has_no_length_between_two_words() -> None:
    for name in ("bert", "llama"):
        assert not sites(name).lengths


class Upright(nn.Module):
    """Two stages down, one up again: only sizes that halve twice fit together."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.side = nn.Conv2d(4, 4, 4, stride=4)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down2(self.down1(x))
        two = self.side(functional.max_pool2d(x, 1).expand(-1, 4, -1, -1))
        return self.head(torch.cat([one, two], 1).mean((2, 3)))


def test_branches_that_must_meet_set_the_step() -> None:
    (length,) = captured(Upright(), 1, 16, 16).lengths.values()
    assert (length.step, length.why_not) == (4, None)


class Flattened(nn.Module):
    """A linear layer that knows every pixel by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


class Pooled(Flattened):
    """The same behind a pooling to a fixed size."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.adaptive_avg_pool2d(self.conv(x), 8).flatten(1))


class Dense(Flattened):
    """One answer for every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Sampled(Flattened):
    """Every other pixel is read."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, ::2].mean((2, 3))


class Causal(nn.Module):
    """Attention over frames under a mask of its own for every pair of them."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x, is_causal=True)[:, -1]


class Half(Flattened):
    """Only the left half is read."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., :4].mean((2, 3))


@pytest.mark.parametrize(
    ("model", "size", "reason"),
    [
        (Flattened(), (1, 8, 8), "reads head.weight, which holds numbers for each position"),
        (Dense(), (1, 8, 8), "the output has an entry for each position of conv2d"),
        (Sampled(), (1, 8, 8), "reads some positions by their place"),
        (Half(), (1, 8, 8), "reads some positions by their place"),
        (Causal(), (6, 4), "mask_causal_6_6 holds a number for each pair of positions"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_what_knows_positions_by_their_place_is_the_reason_why_not(
    model: nn.Module, size: tuple[int, ...], reason: str
) -> None:
    (length,) = captured(model, *size).lengths.values()
    assert length.why_not is not None and reason in length.why_not


def test_pooling_to_a_fixed_size_frees_what_comes_before() -> None:
    (length,) = captured(Pooled(), 1, 8, 8).lengths.values()
    assert length.why_not is None


def test_windows_with_tables_of_their_own_are_a_reason_why_not() -> None:
    settings = SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=4
    )

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.swin = SwinModel(settings, add_pooling_layer=False)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.swin(pixel_values=pixels).last_hidden_state.mean(1)

    (length,) = captured(Windows(), 3, 32, 32).lengths.values()
    assert length.axis == "resolution" and length.why_not is not None


def test_inspect_and_sites_json_show_lengths(tmp_path: Path) -> None:
    found = sites("vit")
    body = files.read_json(found.write(tmp_path / "sites.json"), "sites")
    (entry,) = [each for each in body["sites"] if each["axis"] == "resolution"]
    assert (entry["name"], entry["units"], entry["step"]) == ("pixels.resolution", 16, 4)
    (row,) = [row for row in rows_of(found.sites) if row.site.axis == "resolution"]
    assert verdict(row.site) == "yes, in steps of 4"
    assert program("vit").resized == ()

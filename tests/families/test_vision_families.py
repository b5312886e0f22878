"""Pictures, videos, points, sounds, tables: cut exactly, trained, saved, lowered and run."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from families import FAMILIES
from families.checks import (
    difference,
    masked_equals_removed,
    random_plan,
    reloads,
    runs,
    trains,
)

from edgeprune.program.program import as_tuple
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply

KINDS = ("families.vision_transformers", "families.convolutional", "families.others")
NAMES = [name for name, each in FAMILIES.items() if each.model.__module__ in KINDS]
# Large: its real weights. Lowered always: those with operators of their own.
LARGE = ("efficientnet-lite0",)
SMALL = [name for name in NAMES if name not in LARGE]
LOWERED = ("gan-generator", "swin", "unet", "video-3d")
EXACT, RUNS = 1e-9, 1e-4


@cache
def sites_of(name: str) -> Sites:
    return find_sites(FAMILIES[name].capture(torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_has_a_rule_and_every_axis_is_found(name: str) -> None:
    found = sites_of(name)
    assert not found.flow.unknown
    assert set(FAMILIES[name].axes) <= {site.axis for site in found.cuttable}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
def test_masked_equals_removed(name: str, seed: int) -> None:
    found = sites_of(name)
    assert masked_equals_removed(FAMILIES[name], found, random_plan(found, seed)) <= EXACT


@pytest.mark.parametrize("name", SMALL)
def test_a_slim_program_computes_something_else_trains_and_reloads(name: str) -> None:
    found = sites_of(name)
    slim = apply(found.program, random_plan(found, 1), found)
    inputs = FAMILIES[name].draw(3, 5, torch.float64)
    with torch.no_grad():
        whole, cut = as_tuple(found.program(*inputs)), as_tuple(slim(*inputs))
    assert difference(cut, whole) > 1e-3
    assert slim.parameters < found.program.parameters
    assert trains(slim, inputs)
    assert reloads(slim, inputs) == 0


def lowered(name: str, seed: int) -> float:
    """The largest difference between the file of a slim program and that program."""
    program = FAMILIES[name].capture()
    found = find_sites(program)
    return runs(apply(program, random_plan(found, seed), found), FAMILIES[name].draw(2, 5))


@pytest.mark.parametrize("name", LOWERED)
def test_a_slim_program_lowers_and_runs(name: str) -> None:
    assert lowered(name, 1) <= RUNS


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_slim_programs_of_every_family_lower_and_run(name: str) -> None:
    assert max(lowered(name, seed) for seed in range(3)) <= RUNS


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_masked_equals_removed_over_many_plans(name: str) -> None:
    found = sites_of(name)
    plans = [random_plan(found, seed) for seed in range(100)]
    assert max(masked_equals_removed(FAMILIES[name], found, plan) for plan in plans) <= EXACT


def test_a_block_with_a_projected_shortcut_is_no_identity_and_stays() -> None:
    found = sites_of("resnet-basic")
    removable = [site.name for site in found.cuttable if site.axis == "sublayer"]
    assert removable == [f"body.resnet.encoder.stages.{stage}.layers.1.block" for stage in (0, 1)]

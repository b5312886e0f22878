"""The solver's question says what table and damage say, and its answer becomes that plan."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from models import NEURONS, TOKENS, WIDTH, FusedBlock, noise, sites
from torch import Tensor, nn

from edgeprune.cost import CostTable, estimate_costs
from edgeprune.formulate import (
    MOST_OPTIONS,
    Choices,
    choices_of,
    formulate,
    plan_of,
    token_levels,
    width_levels,
)
from edgeprune.importance import Damage
from edgeprune.lower import Lowering
from edgeprune.plan import check_plan
from edgeprune.profile import Multiples, load_profile
from edgeprune.program import capture
from edgeprune.sites import Site, Sites, find_sites
from edgeprune.solve import Problem
from edgeprune.solve.problem import FrontPoint, evaluate
from edgeprune.surgery import apply

ANY = Multiples(heads=1, ffn=1, tokens=1)
LAYER = "bert.encoder.layer.0"


@pytest.fixture(scope="module")
def found() -> Sites:
    return sites("bert")


@pytest.fixture(scope="module")
def choices(found: Sites) -> tuple[Choices, ...]:
    return choices_of(found, ANY)


@pytest.fixture(scope="module")
def levels(found: Sites) -> tuple[int, ...]:
    return token_levels(found, ANY)


@pytest.fixture(scope="module")
def table(found: Sites) -> CostTable:
    return estimate_costs(found, load_profile("pixel8"), Lowering("int8"))


@pytest.fixture(scope="module")
def damage(found: Sites) -> Damage:
    """Made up: each unit or token gone does the same harm, and units rank from the last down."""
    widths = [site for site in found.cuttable if site.kind == "width"]
    return Damage(
        orders={site.name: tuple(range(site.units))[::-1] for site in widths},
        width={site.name: {site.units: 0.0, 1: (site.units - 1) / site.units} for site in widths},
        removed={residual.name: 1.5 for residual in found.residuals},
        tokens={stream.name: {TOKENS: 0.0, 0: 3.0} for stream in found.streams},
    )


@pytest.fixture(scope="module")
def problem(
    found: Sites,
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    damage: Damage,
    table: CostTable,
) -> Problem:
    return formulate(found, choices, levels, damage, table)


def dense_point(problem: Problem) -> FrontPoint:
    every = [len(block.options) - 1 for block in problem.blocks]
    return evaluate(problem, every, [0] * len(every))


def random_point(problem: Problem, seed: int) -> FrontPoint:
    chooser, level = random.Random(seed), 0
    chosen, after = [], []
    for block in problem.blocks:
        option = chooser.randrange(len(block.options))
        if block.may_select[option] and chooser.random() < 0.6:
            level = chooser.randrange(level, len(problem.token_levels))
        chosen.append(option)
        after.append(level)
    return evaluate(problem, chosen, after)


def test_the_dense_plan_is_an_option_without_damage(
    found: Sites,
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    damage: Damage,
    problem: Problem,
) -> None:
    point = dense_point(problem)
    plan = plan_of(found, choices, levels, damage, point)
    assert point.damage == 0.0
    assert not plan.kept and not plan.tokens


@pytest.mark.parametrize("seed", range(20))
def test_a_point_costs_what_the_table_predicts_for_its_plan(
    found: Sites,
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    damage: Damage,
    table: CostTable,
    problem: Problem,
    seed: int,
) -> None:
    point = random_point(problem, seed)
    plan = plan_of(found, choices, levels, damage, point)
    check_plan(plan, found)
    predicted = table.predict(found, plan)
    assert point.latency_ms == pytest.approx(predicted.latency_ms)
    assert point.size_mb == pytest.approx(predicted.size_mb)
    assert point.peak_memory_mb == pytest.approx(predicted.peak_memory_mb)


def test_a_plan_keeps_the_best_units_and_can_be_applied(
    found: Sites,
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    damage: Damage,
    problem: Problem,
) -> None:
    two_heads, no_ffn = (
        next(i for i, o in enumerate(choice.options) if o.units == units)
        for choice, units in ((choices[0], 2), (choices[1], 0))
    )
    full = [len(choice.options) - 1 for choice in choices]
    point = evaluate(problem, [two_heads, no_ffn, *full[2:]], [1, 1, 1, 1])
    plan = plan_of(found, choices, levels, damage, point)
    assert plan.kept == {f"{LAYER}.heads": (2, 3), f"{LAYER}.ffn": ()}
    assert plan.tokens == {f"{LAYER}.tokens": levels[1]}
    assert apply(found.program, plan, found).parameters < found.program.parameters


def test_damage_of_a_point_is_the_sum_over_its_cuts(
    choices: tuple[Choices, ...], levels: tuple[int, ...], problem: Problem
) -> None:
    one_head = next(i for i, o in enumerate(choices[0].options) if o.units == 1)
    full = [len(choice.options) - 1 for choice in choices]
    point = evaluate(problem, [one_head, 0, *full[2:]], [1, 1, 2, 2])
    dropped = 3.0 * (TOKENS - levels[2]) / TOKENS
    assert point.damage == pytest.approx(0.75 + 1.5 + dropped)


def test_each_axis_has_a_factor_of_its_own(
    found: Sites,
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    damage: Damage,
    table: CostTable,
    problem: Problem,
) -> None:
    full = [len(choice.options) - 1 for choice in choices]
    cuts = {
        "width": ([1, *full[1:]], [0, 0, 0, 0]),
        "depth": ([full[0], 0, *full[2:]], [0, 0, 0, 0]),
        "length": (full, [1, 1, 1, 1]),
    }
    for axis in cuts:
        weighted = formulate(found, choices, levels, damage, table, {axis: 3.0})
        for cut, (chosen, after) in cuts.items():
            before = evaluate(problem, chosen, after)
            changed = evaluate(weighted, chosen, after)
            assert changed.damage == pytest.approx((3.0 if cut == axis else 1.0) * before.damage)
            assert changed.latency_ms == before.latency_ms


def test_tokens_can_be_dropped_only_where_attention_ranks_them(
    choices: tuple[Choices, ...], problem: Problem
) -> None:
    for choice, block in zip(choices, problem.blocks, strict=True):
        attends = choice.residual.name.endswith(".attention")
        assert (choice.stream is not None) == attends
        expected = [attends and option.units > 0 for option in choice.options]
        assert block.may_select.tolist() == expected


def test_dropping_tokens_never_undoes_damage(
    found: Sites, choices: tuple[Choices, ...], damage: Damage, table: CostTable
) -> None:
    tokens = {stream.name: {12: 0.0, 8: 0.5, 6: 0.2} for stream in found.streams}
    problem = formulate(found, choices, (12, 8, 6), replace(damage, tokens=tokens), table)
    wanted = np.array([[0, 0.5, 0.2], [0, 0, 0], [0, 0, 0]])
    selections = [b.select_damage for b in problem.blocks if b.select_damage is not None]
    assert len(selections) == 2
    for selection in selections:
        np.testing.assert_allclose(selection, wanted)


def test_axes_that_are_closed_offer_nothing(found: Sites) -> None:
    for closed in ("depth", "width", "length"):
        axes = tuple(axis for axis in ("depth", "width", "length") if axis != closed)
        offered = choices_of(found, ANY, axes)
        units = [option.units for choice in offered for option in choice.options]
        assert (0 in units) == (closed != "depth")
        assert (len(units) > 2 * len(offered)) == (closed != "width")
        assert any(choice.stream for choice in offered) == (closed != "length")
        for choice in offered:
            assert choice.site is not None
            assert choice.options[-1].units == choice.site.units


def test_options_name_what_is_kept(choices: tuple[Choices, ...]) -> None:
    assert [option.label for option in choices[0].options] == ["none", "1", "2", "3", "4"]


@pytest.mark.parametrize(("units", "axis"), [(1536, "ffn"), (NEURONS, "ffn"), (12, "heads")])
def test_widths_are_multiples_that_the_device_likes(units: int, axis: str) -> None:
    levels = width_levels(Site("a", axis, units), Multiples(heads=2, ffn=8, tokens=8))
    step = 8 if axis == "ffn" else 2
    assert levels[-1] == units
    assert all(level % step == 0 for level in levels)
    assert list(levels) == sorted(set(levels))
    assert 2 < len(levels) <= MOST_OPTIONS + 1


def test_a_site_too_small_for_multiples_is_cut_unit_by_unit() -> None:
    multiples = Multiples(heads=2, ffn=32, tokens=8)
    assert width_levels(Site("a", "heads", 4), multiples) == (1, 2, 3, 4)
    assert width_levels(Site("a", "kv_groups", 2), multiples) == (1, 2)


def test_token_levels_fall_from_all_and_keep_the_pinned_ones(levels: tuple[int, ...]) -> None:
    assert levels[0] == TOKENS
    assert list(levels) == sorted(set(levels), reverse=True)
    assert levels[-1] == 1
    assert token_levels(sites("bert_first"), ANY)[-1] >= 1
    assert token_levels(sites("convolutional"), ANY) == (1,)


def test_long_inputs_are_cut_to_multiples() -> None:
    found = sites("vit")
    size = found.streams[0].tokens.size
    got = token_levels(found, Multiples(heads=1, ffn=1, tokens=4))
    assert got[0] == size == 17
    assert all(level % 4 == 0 for level in got[1:])


class TwoTowers(nn.Module):
    """Two encoders, of 12 and of 6 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList([FusedBlock(sliced=False)])
        self.right = nn.ModuleList([FusedBlock(sliced=False)])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left[0](x).mean(1) + self.right[0](y).mean(1)


def test_of_two_towers_the_longer_is_shortened_and_the_other_priced_as_it_is() -> None:
    examples = (noise(3, 12, WIDTH, seed=0), noise(3, 6, WIDTH, seed=1))
    towers = find_sites(capture(TwoTowers().eval(), examples))
    choices, levels = choices_of(towers, ANY), token_levels(towers, ANY)
    assert [c.stream and c.stream.name for c in choices] == ["left.0.tokens", None, None, None]
    assert levels[0] == 12
    widths = [site for site in towers.cuttable if site.kind == "width"]
    damage = Damage(
        orders={site.name: tuple(range(site.units)) for site in widths},
        width={site.name: {site.units: 0.0, 1: 1.0} for site in widths},
        removed={residual.name: 1.0 for residual in towers.residuals},
        tokens={stream.name: {stream.tokens.size: 0.0, 1: 1.0} for stream in towers.streams},
    )
    table = estimate_costs(towers, load_profile("pixel8"), Lowering("int8"))
    problem = formulate(towers, choices, levels, damage, table)
    left, right = (block.latency_ms[-1] for block in (problem.blocks[1], problem.blocks[3]))
    assert left[-1] < left[0]
    assert (right == table.block_ms("right.0.ffn", NEURONS, 6)).all()

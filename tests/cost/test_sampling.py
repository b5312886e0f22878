"""Samples go where the table is in doubt, and it says how much it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cost_models import TOKENS, encoder

from edgeprune.cost.blocks import Block, find_blocks, overhead_tokens, sizes_of
from edgeprune.cost.sampling import (
    Doubt,
    Size,
    doubts,
    expected_pct,
    first_sizes,
    most_informative,
)
from edgeprune.sites import find_sites

COUNTS = tuple(range(1, TOKENS + 1))
Cost = Callable[[float, float], float]
"""(share of units, share of tokens) -> latency over the dense model's."""


@pytest.fixture(scope="module")
def blocks() -> tuple[Block, ...]:
    return find_blocks(find_sites(encoder()))


def cost_of(cost: Cost, block: Block, size: Size) -> float:
    return cost(size[0] / block.units, size[1] / block.tokens)


def measured_until(
    blocks: tuple[Block, ...], cost: Cost, error_pct: float
) -> tuple[dict[tuple[str, Size], float], float]:
    """What would be measured, and the error stated at the end."""
    ratios = {
        (block.name, size): cost_of(cost, block, size)
        for block in blocks
        for size in first_sizes(block, COUNTS)
    }
    while (expected := expected_pct(doubtful := doubts(blocks, COUNTS, ratios))) > error_pct:
        for each in most_informative(doubtful, 4):
            ratios[each.block.name, each.size] = cost_of(cost, each.block, each.size)
    return ratios, expected


def straight(units: float, tokens: float) -> float:
    return 0.02 + 0.1 * units * tokens


def stepped(units: float, tokens: float) -> float:
    """Eight tokens at a time, as a kernel with tiles."""
    return 0.02 + 0.1 * units * math.ceil(2 * tokens) / 2


def test_where_costs_are_straight_the_first_sizes_are_enough(blocks: tuple[Block, ...]) -> None:
    ratios, expected = measured_until(blocks, straight, 0.5)
    assert expected == pytest.approx(0.0, abs=1e-6)
    assert set(ratios) == {(b.name, size) for b in blocks for size in first_sizes(b, COUNTS)}
    assert len(ratios) < sum(len(sizes_of(b, COUNTS)) for b in blocks) / 2


@pytest.mark.parametrize("counts", [None, (24, 48, 80, 128), range(1, 129)])
def test_what_the_overhead_is_fitted_to_is_measured_first(
    blocks: tuple[Block, ...], counts: Sequence[int] | None
) -> None:
    for block in (replace(each, tokens=128) for each in blocks):
        chains = {(block.units, tokens) for tokens in overhead_tokens(block)}
        assert chains <= set(first_sizes(block, counts))


def test_where_costs_step_more_is_measured_until_the_stated_error(
    blocks: tuple[Block, ...],
) -> None:
    roughly, _ = measured_until(blocks, stepped, 100.0)
    finely, expected = measured_until(blocks, stepped, 2.0)
    assert expected <= 2.0 and len(finely) > len(roughly)


def test_the_next_size_lies_where_a_left_out_sample_was_missed_most(
    blocks: tuple[Block, ...],
) -> None:
    attention, ffn = blocks

    def cost(block: Block, size: Size) -> float:
        return cost_of(stepped if block is ffn else straight, block, size)

    ratios = {(b.name, s): cost(b, s) for b in blocks for s in first_sizes(b, COUNTS)}
    chosen = most_informative(doubts(blocks, COUNTS, ratios), 3)
    assert chosen[0].block is ffn and chosen[0].size[0] == ffn.units
    assert len({each.gap for each in chosen}) == 3
    assert attention.name not in {each.block.name for each in chosen[:1]}


def test_no_error_is_left_when_every_size_is_measured(blocks: tuple[Block, ...]) -> None:
    ratios, expected = measured_until(blocks, stepped, 0.0)
    assert expected == 0.0
    assert set(ratios) == {(b.name, size) for b in blocks for size in sizes_of(b, COUNTS)}


def test_the_stated_error_covers_most_of_what_interpolation_misses(
    blocks: tuple[Block, ...],
) -> None:
    covered = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        # One step for every sixty-fourth of a line: latencies that are rough all over.
        by_units, by_tokens = (np.cumsum(rng.gamma(0.5, size=65)) for _ in range(2))

        def rough(
            units: float, tokens: float, steps: tuple[Any, Any] = (by_units, by_tokens)
        ) -> float:
            return float(1e-5 * steps[0][round(64 * units)] * steps[1][round(64 * tokens)])

        ratios = {(b.name, s): cost_of(rough, b, s) for b in blocks for s in first_sizes(b, COUNTS)}
        for each in doubts(blocks, COUNTS, ratios):
            off = abs(straight_between(each, ratios) - cost_of(rough, each.block, each.size))
            covered.append(len(each.block.residuals) * off <= each.share)
    assert sum(covered) / len(covered) > 0.8


def straight_between(doubt: Doubt, ratios: dict[tuple[str, Size], float]) -> float:
    """What the nearest samples on the doubt's line say about its size."""
    block, size = doubt.block, doubt.size
    along = 1 if size[0] == block.units else 0
    line = sorted(
        (known[along], ratio)
        for (name, known), ratio in ratios.items()
        if name == block.name and known[1 - along] == size[1 - along]
    )
    return float(np.interp(size[along], *zip(*line, strict=True)))

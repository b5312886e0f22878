"""A deep model: still proved, and nothing but the answer on standard output."""

from __future__ import annotations

import os

import pytest
from enumerated import random_problem

from edgeprune.solve import Bounds, Problem, solve
from edgeprune.solve.flow import _hushed


@pytest.fixture(scope="module")
def deep() -> Problem:
    return random_problem(seed=48, blocks=96, options=33, levels=8)


def test_48_layers_are_solved_to_a_small_gap(deep: Problem) -> None:
    dense = solve(deep, Bounds())
    fastest = dense.front[0].latency_ms
    for part in (0.2, 0.5, 0.8):
        budget = fastest + part * (dense.latency_ms - fastest)
        solution = solve(deep, Bounds(latency_ms=budget))
        assert solution.latency_ms <= budget
        assert solution.certificate.gap_pct < 0.5
        assert solution.certificate.binding == "latency"


def test_the_front_of_48_layers_is_wide_and_falls(deep: Problem) -> None:
    front = solve(deep, Bounds()).front
    assert len(front) > 100
    for quicker, better in zip(front, front[1:], strict=False):
        assert quicker.latency_ms < better.latency_ms
        assert quicker.damage > better.damage


def test_48_layers_within_latency_and_size_are_solved_to_a_small_gap(deep: Problem) -> None:
    dense = solve(deep, Bounds())
    fastest = dense.front[0]
    bounds = Bounds(
        latency_ms=(fastest.latency_ms + dense.latency_ms) / 2, size_mb=0.8 * dense.size_mb
    )
    solution = solve(deep, bounds)
    assert bounds.allow(solution.point)
    assert solution.certificate.gap_pct < 2


def test_highs_cannot_write_into_our_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    with _hushed():
        os.write(1, b"a debug line")
    os.write(1, b"ours")
    assert capfd.readouterr().out == "ours"

"""The door: what the solver refuses, and in which words; what goes out comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from enumerated import random_problem

from edgeprune.errors import InfeasibleError, InputError
from edgeprune.solve import Block, Bounds, FrontPoint, Problem, evaluate, solve


def block(**changes: Any) -> Block:
    """Two options, two token levels."""
    fields: dict[str, Any] = {
        "name": "layer.0.heads",
        "options": ("2 heads", "none"),
        "damage": np.array([0.0, 1.0]),
        "latency_ms": np.array([[4.0, 2.0], [1.0, 0.5]]),
        "weight_mb": np.array([10.0, 0.0]),
        "activation_mb": np.array([[3.0, 2.0], [1.0, 1.0]]),
        "select_damage": np.array([[0.0, 0.25], [0.0, 0.0]]),
        "select_latency_ms": np.array([[0.0, 0.1], [0.0, 0.0]]),
        "select_needs": np.array([True, False]),
    }
    return Block(**(fields | changes))


def two_blocks() -> Problem:
    """Least alone: latency 1 + 2 ms, size 5 MB, peak 5 + 2 MB."""
    return Problem((8, 4), (block(), block(name="layer.1.heads")), 1.0, 5.0, 2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"damage": np.zeros(3)}, r"'layer\.0\.heads': damage has shape \(3,\), wanted \(2,\)"),
        ({"damage": np.array([0.0, np.nan])}, r"damage\[1\] is nan"),
        ({"latency_ms": np.array([[1, -1], [0, 0]])}, r"latency_ms\[0, 1\] is -1"),
        ({"latency_ms": np.zeros(2)}, "latency_ms has shape"),
        ({"weight_mb": np.array([np.inf, 0])}, r"weight_mb\[0\] is inf"),
        ({"activation_mb": np.zeros((2, 3))}, "activation_mb has shape"),
        ({"activation_mb": [["a", "b"], ["c", "d"]]}, "activation_mb is not an array of numbers"),
        ({"select_damage": np.eye(2)}, "select_damage has a non-zero diagonal"),
        ({"select_damage": np.full((2, 2), np.nan)}, "select_damage has"),
        ({"select_latency_ms": None}, "both, or neither"),
        ({"select_needs": np.array([1, 0])}, r"select_needs is int64\[2\], wanted bool\[2\]"),
        ({"options": ()}, "has no options"),
    ],
)
def test_a_malformed_block_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        block(**changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Problem((8, 8), (block(),)), "strictly falling"),
        (lambda: Problem((), (block(),)), "at least one"),
        (lambda: Problem((8,), (block(),)), "tables cover 2 token levels, the problem has 1"),
        (lambda: Problem((8, 4), ()), "no blocks"),
        (lambda: Problem((8, 4), (block(),), float("nan")), "fixed_latency_ms is nan"),
        (lambda: Problem((8, 4), (block(),), tail_latency_ms=np.zeros(3)), "tail_latency_ms"),
        (lambda: Bounds(latency_ms=0.0), "latency_ms: got 0.0, wanted a positive number"),
        (lambda: Bounds(size_mb=float("nan")), "size_mb: got nan"),
    ],
)
def test_a_malformed_problem_or_bound_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize(
    ("choices", "levels_after", "words"),
    [
        ((0, 0), (1, 0), "go from 1 to 0"),
        ((1, 0), (1, 1), "after option 'none'; not possible"),
        ((0,), (0,), "one of each per block"),
    ],
)
def test_an_impossible_plan_is_not_priced(
    choices: tuple[int, ...], levels_after: tuple[int, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(two_blocks(), choices, levels_after)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds(latency_ms=2.5), r"latency asked ≤ 2\.5 ms, the least reachable is 3\b"),
        (Bounds(size_mb=4), r"size asked ≤ 4 MB, the least reachable is 5\b"),
        (Bounds(peak_memory_mb=6), r"peak memory asked ≤ 6 MB, the least reachable is 7\b"),
        (
            Bounds(latency_ms=2, peak_memory_mb=6),
            "latency asked ≤ 2 ms.*3; peak memory asked ≤ 6 MB.*7",
        ),
        (Bounds(latency_ms=20, peak_memory_mb=6), "peak memory asked ≤ 6 MB.*7"),
    ],
)
def test_an_unreachable_bound_is_named_with_its_least(bounds: Bounds, words: str) -> None:
    with pytest.raises(InfeasibleError, match=words) as caught:
        solve(two_blocks(), bounds)
    assert caught.value.exit_code == 3


def test_bounds_that_clash_say_what_each_could_reach_alone() -> None:
    slow_or_big = block(
        options=("fast and big", "slow and small"),
        damage=np.zeros(2),
        latency_ms=np.array([[1.0, 1.0], [9.0, 9.0]]),
        weight_mb=np.array([9.0, 1.0]),
    )
    problem = Problem((8, 4), (slow_or_big,))
    words = r"clash: latency asked ≤ 5 ms \(least alone 1\) and size asked ≤ 5 MB \(least alone 1\)"
    with pytest.raises(InfeasibleError, match=words):
        solve(problem, Bounds(latency_ms=5, size_mb=5))


def test_the_least_reachable_can_be_reached() -> None:
    problem = two_blocks()
    assert solve(problem, Bounds(latency_ms=3)).latency_ms == 3
    assert solve(problem, Bounds(size_mb=5)).size_mb == 5
    assert solve(problem, Bounds(peak_memory_mb=7)).peak_memory_mb == 7


def test_the_binding_bound_is_named() -> None:
    problem = two_blocks()
    assert solve(problem, Bounds(latency_ms=100, size_mb=100)).certificate.binding == "none"
    assert solve(problem, Bounds(latency_ms=5, size_mb=100)).certificate.binding == "latency"
    assert solve(problem, Bounds(latency_ms=100, size_mb=15)).certificate.binding == "size"
    peak = solve(problem, Bounds(latency_ms=100, peak_memory_mb=18))
    assert peak.certificate.binding == "peak_memory"


def test_dp_refuses_bounds_that_are_not_one_sum() -> None:
    for bounds in (Bounds(latency_ms=5, size_mb=5), Bounds(peak_memory_mb=9)):
        with pytest.raises(InputError, match="Use solver 'milp' or 'auto'"):
            solve(two_blocks(), bounds, "dp")


def test_an_unknown_solver_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match="'magic': unknown; there are: .*dp.*milp"):
        solve(two_blocks(), Bounds(), "magic")


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(latency_ms=14.0), Bounds(10.0, 30.0, 25.0)])
def test_a_point_survives_json(bounds: Bounds) -> None:
    solution = solve(random_problem(5, blocks=4, options=4, levels=3), bounds)
    for point in (solution.point, *solution.front):
        assert FrontPoint.from_json(json.loads(json.dumps(asdict(point)))) == point

"""Products of choices between sums of them, and the answers, against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import InfeasibleError, InputError
from edgeprune.solve import Block, Bounds, FrontPoint, Problem, solve
from edgeprune.solve.condense import above, below
from edgeprune.solve.problem import Product, evaluate

seeds = st.integers(0, 2**32)
few = settings(max_examples=40, deadline=None)


def product_problem(seed: int) -> Problem:
    """Two sub-layers that may be removed, two widths that span both and two chunks."""
    rng = np.random.default_rng(seed)
    counts = (4, 3, 4, 3)

    def falling(count: int) -> np.ndarray:
        return np.sort(np.append(rng.uniform(0, 2, count - 1), 0.0))[::-1].copy()

    def shares(count: int) -> np.ndarray:
        rows = np.sort(rng.uniform(0.1, 1, (count, 3)), axis=0)
        rows[-1] = 1
        return rows

    blocks = tuple(
        Block(
            f"block {place}",
            tuple(map(str, range(count))),
            damage=falling(count),
            latency_ms=np.zeros((count, 1)),
            weight_mb=np.zeros(count),
            activation_mb=np.zeros((count, 1)),
        )
        for place, count in enumerate(counts)
    )
    products = []
    for place in (0, 1):
        base = np.append(0, np.sort(rng.uniform(0.2, 3, counts[place] - 1)))
        span = {2: shares(counts[2]), 3: shares(counts[3])}
        tables = (base[:, None], base, base[:, None] * 0, base[:, None])
        products.append(Product(f"sub-layer {place}", place, *tables, span))
    for place in (2, 3):
        base = rng.uniform(0.1, 2, (1, 1))
        tables = (base, base[0], base * 0, base)
        products.append(Product(f"chunk {place}", None, *tables, {place: shares(counts[place])}))
    return Problem((1,), blocks, 0.3, 0.1, 0.2, products=tuple(products))


def plans_of(problem: Problem) -> list[FrontPoint]:
    options = (range(len(block.options)) for block in problem.blocks)
    return [evaluate(problem, choices, [0] * 4) for choices in itertools.product(*options)]


@given(seed=seeds)
@few
def test_sums_bound_every_plan_and_the_upper_one_is_exact_around_its_own(seed: int) -> None:
    problem = product_problem(seed)
    plans = plans_of(problem)
    around = plans[seed % len(plans)]
    upper = above(problem, around)
    lower, over = below(problem)
    for plan in plans:
        assert evaluate(upper, plan.choices, [0] * 4).latency_ms >= plan.latency_ms - 1e-9
        assert evaluate(upper, plan.choices, [0] * 4).size_mb >= plan.size_mb - 1e-9
        assert evaluate(lower, plan.choices, [0] * 4).latency_ms - over <= plan.latency_ms + 1e-9
    same = evaluate(upper, around.choices, [0] * 4)
    for name in ("latency_ms", "size_mb", "damage"):
        assert getattr(same, name) == pytest.approx(getattr(around, name))


@given(seed=seeds, share=st.floats(0.05, 1.0))
@few
def test_answers_are_within_the_bounds_and_the_certificate_holds(seed: int, share: float) -> None:
    problem = product_problem(seed)
    plans = plans_of(problem)
    whole = max(plan.latency_ms for plan in plans)
    bounds = Bounds(latency_ms=share * whole)
    possible = [plan for plan in plans if bounds.allow(plan)]
    if not possible:
        with pytest.raises(InfeasibleError, match="latency"):
            solve(problem, bounds)
        return
    found = solve(problem, bounds)
    best = min(plan.damage for plan in possible)
    assert bounds.allow(found.point)
    assert found.point in plans
    assert found.certificate.bound_damage <= best + 1e-9 <= found.damage + 2e-9
    assert "heuristic" in found.certificate.note
    assert all(point in plans for point in found.front)


def test_answers_are_near_the_best_of_all() -> None:
    """Over 40 problems at 60% of the latency, on average within a tenth of the dense damage."""
    missed = []
    for seed in range(40):
        problem = product_problem(seed)
        plans = plans_of(problem)
        bounds = Bounds(latency_ms=0.6 * max(plan.latency_ms for plan in plans))
        best = min(plan.damage for plan in plans if bounds.allow(plan))
        most = max(plan.damage for plan in plans)
        missed.append((solve(problem, bounds).damage - best) / most)
    assert np.mean(missed) < 0.02


def test_size_and_memory_bind_too() -> None:
    problem = product_problem(5)
    dense = evaluate(problem, [3, 2, 3, 2], [0] * 4)
    bounds = Bounds(0.8 * dense.latency_ms, 0.7 * dense.peak_memory_mb, 0.6 * dense.size_mb)
    assert bounds.allow(solve(problem, bounds).point)


def test_shares_of_another_shape_or_size_are_refused() -> None:
    one = np.ones((1, 1))
    block = Block("a", ("x", "y"), np.zeros(2), np.zeros((2, 1)), np.zeros(2), np.zeros((2, 1)))
    for shares, message in ((np.ones((3, 3)), "wanted"), (2 * np.ones((2, 3)), "exceed 1")):
        with pytest.raises(InputError, match=message):
            Problem(
                (1,), (block,), products=(Product("p", None, one, one[0], one, one, {0: shares}),)
            )

"""Both solvers against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from enumerated import Priced, every_plan, front_of, least_damage, random_bounds, random_problem
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from edgeprune.errors import InfeasibleError
from edgeprune.solve import Bounds, FrontPoint, Problem, Solution, dp, evaluate, fixing, milp, solve
from edgeprune.solve.flow import Flow
from edgeprune.solve.problem import fits

BOUND_NAMES = ("latency_ms", "peak_memory_mb", "size_mb")
SEVERAL = [names for count in (1, 2, 3) for names in itertools.combinations(BOUND_NAMES, count)]

problems = st.builds(
    random_problem,
    seed=st.integers(0, 2**32),
    blocks=st.integers(1, 4),
    options=st.integers(1, 4),
    levels=st.integers(1, 3),
)
few = settings(max_examples=60, deadline=None)


def check_certificate(solution: Solution) -> None:
    certificate = solution.certificate
    assert certificate.bound_damage <= solution.damage
    allowed = certificate.gap_pct / 100 * solution.damage
    assert solution.damage == pytest.approx(certificate.bound_damage + allowed)
    assert certificate.exact == (certificate.gap_pct == 0)


def check_plan(problem: Problem, bounds: Bounds, point: FrontPoint, plans: list[Priced]) -> None:
    """The plan exists, costs what it says, and is within the bounds."""
    same = next(
        plan
        for plan in plans
        if plan.choices == point.choices and plan.levels_after == point.levels_after
    )
    for name in (*BOUND_NAMES, "damage"):
        assert getattr(point, name) == getattr(same, name)
    assert all(fits(getattr(point, name), asked) for name, asked in bounds.given().items())


def check_against_enumeration(problem: Problem, bounds: Bounds, solver: str) -> None:
    plans = every_plan(problem)
    best = least_damage(plans, bounds)
    if best is None:
        with pytest.raises(InfeasibleError):
            solve(problem, bounds, solver)
        return
    solution = solve(problem, bounds, solver)
    assert solution.damage == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert solution.certificate.exact
    check_certificate(solution)
    check_plan(problem, bounds, solution.point, plans)


@few
@given(
    problem=problems, seed=st.integers(0, 2**32), name=st.sampled_from(["latency_ms", "size_mb"])
)
def test_dp_equals_enumeration_within_one_bound(problem: Problem, seed: int, name: str) -> None:
    bounds = random_bounds(seed, every_plan(problem), (name,))
    check_against_enumeration(problem, bounds, "dp")


@few
@given(problem=problems, seed=st.integers(0, 2**32), names=st.sampled_from(SEVERAL))
def test_milp_equals_enumeration_within_any_bounds(
    problem: Problem, seed: int, names: tuple[str, ...]
) -> None:
    bounds = random_bounds(seed, every_plan(problem), names)
    check_against_enumeration(problem, bounds, "milp")


@few
@given(problem=problems, seed=st.integers(0, 2**32), names=st.sampled_from(SEVERAL))
def test_the_mixed_integer_program_alone_equals_enumeration(
    problem: Problem, seed: int, names: tuple[str, ...]
) -> None:
    plans = every_plan(problem)
    bounds = random_bounds(seed, plans, names)
    everything = [np.ones(block.latency_ms.shape, dtype=np.bool_) for block in problem.blocks]
    outcome = Flow(problem, bounds, everything, unit_damage=1.0).solve(0.0, 60.0)
    best = least_damage(plans, bounds)
    assert outcome.finished
    if best is None:
        assert outcome.point is None
        return
    assert outcome.point is not None
    assert outcome.point.damage == pytest.approx(best)
    assert outcome.bound_damage == pytest.approx(best, abs=1e-6)


# Its one plan fills the room to the last bit.
@example(
    problem=random_problem(66157, blocks=1, options=1, levels=1), seed=1, names=("latency_ms",)
)
@few
@given(problem=problems, seed=st.integers(0, 2**32), names=st.sampled_from(SEVERAL))
def test_shrinking_never_loses_the_optimum(
    problem: Problem, seed: int, names: tuple[str, ...]
) -> None:
    plans = every_plan(problem)
    bounds = random_bounds(seed, plans, names)
    best = least_damage(plans, bounds)
    assume(best is not None)
    assert best is not None
    fixed = fixing.fix(problem, bounds, known=())
    assert fixed.bound_damage <= best + 1e-6  # HiGHS works to about 1e-7
    if fixing.least_within(fixed.points, bounds) > best:
        assert any(
            all(
                usable[option, level]
                for usable, option, level in zip(
                    fixed.usable, plan.choices, (0, *plan.levels_after[:-1]), strict=True
                )
            )
            for plan in plans
            if plan.damage == best and least_damage([plan], bounds) is not None
        )


@few
@given(problem=problems)
def test_the_front_is_the_enumerated_front(problem: Problem) -> None:
    plans = every_plan(problem)
    solution = solve(problem, Bounds())
    assert [(point.latency_ms, point.damage) for point in solution.front] == front_of(plans)
    assert solution.point == solution.front[-1]
    assert solution.certificate.binding == "none"
    for point in solution.front:
        check_plan(problem, Bounds(), point, plans)


def thinned(monkeypatch: pytest.MonkeyPatch, front_cap: int, search_cap: int) -> None:
    monkeypatch.setattr(dp, "FRONT_CAP", front_cap)
    monkeypatch.setattr(dp, "SEARCH_CAP", search_cap)
    monkeypatch.setattr(fixing, "SWEEP_CAP", front_cap)
    monkeypatch.setattr(fixing, "SEARCH_CAP", search_cap)


@pytest.mark.parametrize("seed", range(25))
def test_thinned_labels_are_made_good_by_the_search(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    thinned(monkeypatch, front_cap=2, search_cap=4096)
    problem = random_problem(seed, blocks=4, options=4, levels=3)
    bounds = random_bounds(seed, every_plan(problem), ("latency_ms",))
    check_against_enumeration(problem, bounds, "dp")


@pytest.mark.parametrize("names", [("latency_ms",), ("latency_ms", "size_mb")])
def test_a_gap_that_is_left_is_true(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    thinned(monkeypatch, front_cap=2, search_cap=1)
    monkeypatch.setattr(milp, "LARGE_PAIRS", 0)
    monkeypatch.setattr(milp, "GOOD_ENOUGH_PCT", 100.0)
    gaps = []
    for seed in range(40):
        problem = random_problem(seed, blocks=4, options=4, levels=3)
        plans = every_plan(problem)
        bounds = random_bounds(seed, plans, names)
        best = least_damage(plans, bounds)
        if best is None:
            continue
        solution = solve(problem, bounds)
        check_certificate(solution)
        check_plan(problem, bounds, solution.point, plans)
        assert solution.certificate.bound_damage <= best * (1 + 1e-9)
        gaps.append(solution.certificate.gap_pct)
    assert max(gaps) > 0


def test_the_search_before_highs_leaves_it_work(monkeypatch: pytest.MonkeyPatch) -> None:
    thinned(monkeypatch, front_cap=2, search_cap=1)
    notes = []
    for seed in range(20):
        problem = random_problem(seed, blocks=4, options=4, levels=3)
        plans = every_plan(problem)
        bounds = random_bounds(seed, plans, ("latency_ms", "peak_memory_mb"))
        check_against_enumeration(problem, bounds, "milp")
        if least_damage(plans, bounds) is not None:
            notes.append(solve(problem, bounds).certificate.note)
    assert any(note.startswith("HiGHS") for note in notes)


@few
@given(problem=problems, seed=st.integers(0, 2**32), names=st.sampled_from(SEVERAL))
def test_tokens_never_increase_and_only_drop_where_scores_exist(
    problem: Problem, seed: int, names: tuple[str, ...]
) -> None:
    bounds = random_bounds(seed, every_plan(problem), names)
    try:
        solution = solve(problem, bounds)
    except InfeasibleError:
        return
    for point in unique(solution.front, solution.point):
        assert point.levels == (0, *point.levels_after[:-1])
        for block, option, here, after in zip(
            problem.blocks, point.choices, point.levels, point.levels_after, strict=True
        ):
            assert after >= here
            assert after == here or block.may_select[option]
        assert evaluate(problem, point.choices, point.levels_after) == point


def unique(front: Iterable[FrontPoint], point: FrontPoint) -> set[FrontPoint]:
    return {*front, point}

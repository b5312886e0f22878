"""Costs that are products of several choices, between sums of them.

Cutting a width that spans several parts multiplies what each of them costs; a knapsack needs sums.
Around a plan a product is bounded from above by a sum, r1 r2 ... rk <= (r1^k + ... + rk^k) / k,
where r = 1 for what that plan chose: equal there, nowhere below. This is condensation, as in
signomial programming (Avriel & Williams, SIAM J. Appl. Math. 19, 1970). What is within the budget
by the sums is within it by the products, and the plan that they were made around stays possible:
solving again around each answer never does more damage than before. From below, shares of at most
1 keep s1 s2 ... sk >= s1 + ... + sk - (k - 1): what no plan reaches by these sums, none reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgeprune.errors import InfeasibleError
from edgeprune.solve.problem import (
    TOLERANCE,
    Bounds,
    FloatArray,
    FrontPoint,
    Problem,
    Product,
    evaluate,
    evaluate_all,
)
from edgeprune.solve.solution import Solution, gap_pct, pareto_points

Solver = Callable[[Problem, Bounds], Solution]

# Each answer is as good as the last or better; few plans still change by then.
MOST_PASSES = 8
# Of what a part costs at most, what is left of it when it is removed: its closing norms.
REMOVED = 0.05
# Ratios to shares of nothing would be infinite.
LEAST_SHARE = 1e-4


def solve_products(solver: Solver, problem: Problem, bounds: Bounds) -> Solution:
    """The least damaging plan found, with a proved bound on what any plan does.

    Args:
        solver: of problems without products.

    Returns:
        A solution at the products' costs. Its certificate is exact only where the plan happens to
        meet the lower bound.

    Raises:
        InfeasibleError: no plan is within the bounds.
    """
    started = time.perf_counter()
    relaxed = _relaxed(solver, problem, bounds)
    starts = [_chosen(problem, [int(block.damage.argmin()) for block in problem.blocks])]
    starts += [relaxed.point] if relaxed else []
    tried: list[tuple[Solution, int]] = []
    for start in starts:
        try:
            tried.append(_settled(solver, problem, start, bounds))
        except InfeasibleError:
            continue
    if not tried:  # around the cheapest plan of all, infeasible is infeasible
        tried.append(_settled(solver, problem, _cheapest(problem), bounds))
    best = min((found for found, _ in tried), key=lambda found: found.damage)
    bound = min(relaxed.certificate.bound_damage, best.damage) if relaxed else 0.0
    passes = sum(count for _, count in tried)
    certificate = replace(
        best.certificate,
        bound_damage=bound,
        gap_pct=gap_pct(best.damage, bound),
        exact=best.damage <= bound * (1 + TOLERANCE),
        seconds=time.perf_counter() - started,
        note=f"heuristic: costs that multiply, as sums around {passes} plans in turn; "
        "the bound is a relaxation's",
    )
    return replace(best, certificate=certificate)


def above(problem: Problem, around: FrontPoint) -> Problem:
    """Sums in the products' place: never below them, and equal at ``around``.

    But for the little that is left of a part that ``around`` removes: that is taken as whole.
    Memory while a part runs is taken as the widths of ``around`` leave it.
    """
    sums = _Sums(problem)
    for product in problem.products:
        sums.add_above(product, around)
    return sums.problem


def below(problem: Problem) -> tuple[Problem, float]:
    """Sums whose latency, less the milliseconds returned with them, is never above the products'.

    Of size and memory they say nothing.
    """
    sums = _Sums(problem)
    over = sum(sums.add_below(product) for product in problem.products)
    return sums.problem, over


def _settled(
    solver: Solver, problem: Problem, start: FrontPoint, bounds: Bounds
) -> tuple[Solution, int]:
    """Solved around the start, then around each answer while that is better; and how often."""
    best: Solution | None = None
    around, count = start, 0
    while count < MOST_PASSES:
        count += 1
        try:
            found = solver(above(problem, around), bounds)
        except InfeasibleError:
            if best is None:
                raise
            break
        around = evaluate(problem, found.choices, found.levels_after)
        if best is not None and bounds.allow(best.point):
            better = found.damage < best.damage * (1 - TOLERANCE)
            if not better or not bounds.allow(around):
                break
        best = replace(found, point=around)
    assert best is not None
    choices, levels_after = zip(*((p.choices, p.levels_after) for p in best.front), strict=True)
    priced = evaluate_all(problem, np.array(choices), np.array(levels_after))
    return replace(best, front=pareto_points([best.point, *priced])), count


def _relaxed(solver: Solver, problem: Problem, bounds: Bounds) -> Solution | None:
    """The answer to sums from below; None where latency is free, or nothing is within even these.

    The other bounds are left out, which only lowers what is proved.
    """
    if bounds.latency_ms is None:
        return None
    sums, over = below(problem)
    try:
        return solver(sums, Bounds(latency_ms=bounds.latency_ms + over))
    except InfeasibleError:
        return None


def _chosen(problem: Problem, choices: list[int]) -> FrontPoint:
    return evaluate(problem, choices, [0] * len(choices))


def _cheapest(problem: Problem) -> FrontPoint:
    """The plan with the least of everything, all tokens kept."""
    least = []
    for place, block in enumerate(problem.blocks):
        cost = block.latency_ms[:, 0].copy()
        for product in problem.products:
            if product.owner == place:
                cost += product.latency_ms[:, 0]
            if place in product.shares:
                cost += float(product.latency_ms.max()) * product.shares[place][:, 0]
        least.append(int(cost.argmin()))
    return _chosen(problem, least)


class _Sums:
    """A problem's tables, with sums added in its products' place."""

    def __init__(self, problem: Problem) -> None:
        self.given = problem
        self.ms = [block.latency_ms for block in problem.blocks]
        self.mb = [block.weight_mb for block in problem.blocks]
        self.activation = [block.activation_mb for block in problem.blocks]
        self.fixed_activation = problem.fixed_activation_mb

    @property
    def problem(self) -> Problem:
        """Without products."""
        tables = zip(self.given.blocks, self.ms, self.mb, self.activation, strict=True)
        return replace(
            self.given,
            blocks=tuple(
                replace(block, latency_ms=ms, weight_mb=mb, activation_mb=activation)
                for block, ms, mb, activation in tables
            ),
            fixed_activation_mb=self.fixed_activation,
            products=(),
        )

    def add_above(self, product: Product, around: FrontPoint) -> None:
        """A sum that is never below the product."""
        choices, levels = np.array([around.choices]), np.array([around.levels])
        (base_ms, base_mb, held, alive) = (float(each[0]) for each in product.base(choices, levels))
        left_ms, left_alive, left_mb = product.left(choices)[0]
        owner = product.owner
        if owner is None:
            self.fixed_activation = max(self.fixed_activation, held + alive * left_alive)
        else:
            here = product.held_mb + product.alive_mb * left_alive
            self.activation[owner] = np.maximum(self.activation[owner], here)
        if owner is not None and base_ms <= REMOVED * product.latency_ms.max():
            # What is removed there costs at most its base where it is not.
            self._add(owner, product.latency_ms, product.weight_mb)
            return
        count = len(product.shares) + (owner is not None)
        ms, mb = base_ms * left_ms / count, base_mb * left_mb / count
        if owner is not None:
            weight = mb * (product.weight_mb / base_mb) ** count if base_mb else product.weight_mb
            self._add(owner, ms * (product.latency_ms / base_ms) ** count, weight)
        for place, shares in product.shares.items():
            shares = np.maximum(shares, LEAST_SHARE)
            ratios = (shares / shares[around.choices[place]]) ** count
            self._add(place, ms * ratios[:, :1], mb * ratios[:, 2])

    def add_below(self, product: Product) -> float:
        """A sum that, less what is returned, is never above the product."""
        whole = float(product.latency_ms.max())
        nothing = np.zeros(1)
        if product.owner is not None:
            self._add(product.owner, product.latency_ms, nothing)
        for place, shares in product.shares.items():
            self._add(place, whole * shares[:, :1], nothing)
        return whole * (len(product.shares) - (product.owner is None))

    def _add(self, place: int, ms: FloatArray, mb: FloatArray) -> None:
        self.ms[place] = self.ms[place] + ms
        self.mb[place] = self.mb[place] + mb

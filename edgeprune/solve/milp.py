"""Mixed-integer programming with HiGHS: latency together with peak memory or size.

In order of cost: the dynamic program with one bound, whose answer is optimal if it happens to
meet the others; a relaxation and a search that shrink the problem (``fixing``); HiGHS on what is
left (Huangfu & Hall, Math. Prog. Comp. 10, 2018).
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from edgeprune.errors import EdgepruneError, InfeasibleError
from edgeprune.solve.dp import solve_dp
from edgeprune.solve.fixing import Fixed, fix, least_within
from edgeprune.solve.flow import Flow, Outcome
from edgeprune.solve.problem import Bounds, FrontPoint, Problem
from edgeprune.solve.reach import clash, refuse_unreachable
from edgeprune.solve.registry import register
from edgeprune.solve.solution import Solution, conclude, gap_pct
from edgeprune.solve.trellis import least_damage, trellis_of

# HiGHS is left out only where it is slow (a 12-layer model with 8 token levels has 4,800 pairs of
# option and level) and the search before it has already proved the plan this good.
LARGE_PAIRS = 6000
GOOD_ENOUGH_PCT = 1.0
TIME_LIMIT_S = 60.0
# HiGHS accepts a row that is over by 1e-6; where a plan it returns is over a bound by our own
# sums, the rows are tightened by this much of themselves.
TIGHTENED = 2e-6


@register("milp")
def solve_milp(problem: Problem, bounds: Bounds) -> Solution:
    """The least damaging plan within any of the bounds together.

    Optimal but in two cases: problems of more than ``LARGE_PAIRS`` (option, level) pairs stop once
    the gap is proved to be at most ``GOOD_ENOUGH_PCT``, and HiGHS stops after ``TIME_LIMIT_S``.
    The certificate has the gap that was left.

    Raises:
        InfeasibleError: no plan is within the bounds.
        EdgepruneError: HiGHS found no plan within its time limit.
    """
    started = time.perf_counter()
    relaxed = _with_one_bound(problem, bounds)
    enough = _enough_pct(problem)
    if bounds.allow(relaxed.point) and relaxed.certificate.gap_pct <= enough:
        point, bound = relaxed.point, relaxed.certificate.bound_damage
        points, note = relaxed.front, "the plan for one bound meets the others"
    else:
        fixed = fix(problem, bounds, relaxed.front)
        points = fixed.points
        point, bound, note = _search(problem, bounds, fixed, enough)
    return conclude(
        point,
        bound,
        bounds,
        points,
        solver="milp",
        least_damage=least_damage(trellis_of(problem, ("latency_ms",))),
        seconds=time.perf_counter() - started,
        note=f"{note}; {relaxed.certificate.note}, those within the other bounds",
    )


def _with_one_bound(problem: Problem, bounds: Bounds) -> Solution:
    """The answer with only the latency bound, or else only the size bound, if any."""
    one = Bounds(latency_ms=bounds.latency_ms)
    if bounds.latency_ms is None:
        one = Bounds(size_mb=bounds.size_mb)
    try:
        return solve_dp(problem, one)
    except InfeasibleError:
        refuse_unreachable(problem, bounds)
        raise


def _enough_pct(problem: Problem) -> float:
    """The gap at which to stop without HiGHS."""
    pairs = sum(block.latency_ms.size for block in problem.blocks)
    return GOOD_ENOUGH_PCT if pairs > LARGE_PAIRS else 0.0


def _search(
    problem: Problem, bounds: Bounds, fixed: Fixed, enough: float
) -> tuple[FrontPoint, float, str]:
    """``(plan, bound, note)`` from what is known, with HiGHS where it must."""
    limit = least_within(fixed.points, bounds)
    known = next((p for p in fixed.points if p.damage == limit and bounds.allow(p)), None)
    if known is not None and gap_pct(known.damage, fixed.bound_damage) <= enough:
        return known, fixed.bound_damage, "label search was enough, HiGHS not needed"
    outcome = _highs(problem, bounds, fixed, limit)
    plans = [plan for plan in (known, outcome.point) if plan is not None]
    if plans:
        best = min(plans, key=lambda plan: plan.damage)
        return best, max(fixed.bound_damage, min(outcome.bound_damage, best.damage)), "HiGHS"
    refuse_unreachable(problem, bounds)
    if outcome.finished:
        raise clash(problem, bounds)
    raise EdgepruneError(
        f"HiGHS found no plan within {TIME_LIMIT_S:.0f} s and did not prove that there is none. "
        "Raise a bound, or offer fewer options per block."
    )


def _highs(problem: Problem, bounds: Bounds, fixed: Fixed, limit: float) -> Outcome:
    """HiGHS's answer, whose plan is within the bounds by our own sums too."""
    unit = limit if np.isfinite(limit) else sum(block.damage.max() for block in problem.blocks)
    flow = Flow(problem, bounds, fixed.usable, float(unit) or 1.0)
    outcome = flow.solve(0.0, TIME_LIMIT_S)
    if outcome.point is None or bounds.allow(outcome.point):
        return outcome
    again = flow.solve(TIGHTENED, TIME_LIMIT_S)
    # What the tightened program proves does not hold for the plans that it leaves out.
    return replace(again, bound_damage=outcome.bound_damage)

"""Dynamic programming: one budget, exact, and the whole Pareto front from the same pass.

Two sweeps of labels (see ``sweep``). The first knows no budget: its end is the front, exact as
long as no token level holds more than ``FRONT_CAP`` labels. Where it had to thin, the second
starts from the best plan found and looks only for a better one within the budget, pruned with
the relaxation's bounds; it ends with a proof of optimality or with an honest gap.
"""

from __future__ import annotations

import time

import numpy as np

from edgeprune.errors import InputError
from edgeprune.solve.problem import TOLERANCE, Bounds, FrontPoint, Problem, evaluate_all
from edgeprune.solve.reach import refuse_unreachable
from edgeprune.solve.registry import register
from edgeprune.solve.solution import Solution, conclude
from edgeprune.solve.sweep import Prune, Swept, Thin, sweep, within
from edgeprune.solve.trellis import Trellis, best_prices, least_damage, trellis_of

FRONT_CAP = 512
SEARCH_CAP = 4096
PRICE_FACTORS = np.array([1.0, 0.8, 1.25, 0.5, 2.0])


@register("dp")
def solve_dp(problem: Problem, bounds: Bounds) -> Solution:
    """The least damaging plan within one bound, latency or size, or within none.

    Raises:
        InputError: more than one bound, or a bound on peak memory (that is not a sum).
        InfeasibleError: no plan is within the bound.
    """
    started = time.perf_counter()
    given = bounds.given()
    if len(given) > 1 or "peak_memory_mb" in given:
        raise InputError(
            f"solver 'dp' takes one bound, latency or size; got {', '.join(given)}. "
            "Use solver 'milp' or 'auto'."
        )
    refuse_unreachable(problem, bounds)
    latency = trellis_of(problem, ("latency_ms",))
    front, front_exact = sweep_front(latency)
    points = front_points(problem, front)
    trellis = latency
    swept, exact = front, front_exact
    if "size_mb" in given:
        trellis = trellis_of(problem, ("size_mb",))
        swept, exact = sweep_front(trellis)
    budget = next(iter(given.values()), np.inf)
    swept, bound = _certify(trellis, swept, budget, exact)
    chosen = within(swept, budget)
    assert chosen is not None, "a reachable budget has a plan: the cheapest label is always kept"
    return conclude(
        evaluate_all(problem, swept.choices[[chosen]], swept.levels_after[[chosen]])[0],
        bound,
        bounds,
        points,
        solver="dp",
        least_damage=least_damage(latency),
        seconds=time.perf_counter() - started,
        note=front_note(front_exact),
    )


def sweep_front(trellis: Trellis) -> tuple[Swept, bool]:
    """The whole front of resource against damage, and whether it is exact."""
    thin = Thin(FRONT_CAP)
    swept = sweep(trellis, thin)
    return swept, thin.exact


def front_points(problem: Problem, swept: Swept) -> tuple[FrontPoint, ...]:
    """The swept plans, priced."""
    return evaluate_all(problem, swept.choices, swept.levels_after)


def front_note(exact: bool) -> str:
    """What the certificate says of the front."""
    return "front exact" if exact else f"front thinned to {FRONT_CAP} plans per token level"


def _certify(trellis: Trellis, swept: Swept, budget: float, exact: bool) -> tuple[Swept, float]:
    """A plan within ``budget`` that is at least as good as the best of ``swept``, and a bound.

    Returns:
        ``(plans, bound)``: plans with the answer among them; none within the budget does less
        damage than ``bound``.
    """
    known = within(swept, budget)
    if known is None:
        return swept, -np.inf
    damage = float(swept.damage[known])
    if exact:
        return swept, damage
    if np.isinf(budget):
        return swept, least_damage(trellis)
    room = np.array([budget * (1 + TOLERANCE)]) - trellis.base
    price, bound = best_prices(trellis, room)
    limit = damage * (1 - TOLERANCE)
    if limit <= bound:
        return swept, bound
    prune = Prune(trellis, np.outer(PRICE_FACTORS, price), room, limit, SEARCH_CAP)
    better = sweep(trellis, prune)
    found = within(better, budget)
    if found is None:
        return swept, max(bound, min(damage, prune.dropped_bound))
    return better, max(bound, min(float(better.damage[found]), prune.dropped_bound))

"""The list of solvers, and the choice among them."""

from __future__ import annotations

from edgeprune.registry import Registry
from edgeprune.solve.condense import Solver, solve_products
from edgeprune.solve.problem import Bounds, Problem
from edgeprune.solve.solution import Solution

SOLVERS: Registry[Solver] = Registry("solver")
register = SOLVERS.register


def solve(problem: Problem, bounds: Bounds, solver: str = "auto") -> Solution:
    """The least damaging plan within ``bounds``.

    Where costs multiply (``problem.products``) the solver is asked about sums around plans, in
    turn (see ``condense``); the certificate then says how good the plan is at least.

    Args:
        problem: the tables.
        bounds: latency, peak memory, size; any of them may be None.
        solver: a registered name; "auto" takes "dp" for at most one bound on latency or size,
            "milp" otherwise.

    Raises:
        InfeasibleError: no plan is within the bounds; the message has the least reachable.
        InputError: no such solver, or one that does not take these bounds.
    """
    asked = SOLVERS.named(solver)
    return solve_products(asked, problem, bounds) if problem.products else asked(problem, bounds)


@register("auto")
def solve_auto(problem: Problem, bounds: Bounds) -> Solution:
    """By the solver that suits the bounds."""
    given = bounds.given()
    name = "dp" if len(given) <= 1 and "peak_memory_mb" not in given else "milp"
    return SOLVERS[name](problem, bounds)

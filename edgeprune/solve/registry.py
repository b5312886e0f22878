"""The list of solvers, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable

from edgeprune.errors import InputError
from edgeprune.solve.problem import Bounds, Problem
from edgeprune.solve.solution import Solution

Solver = Callable[[Problem, Bounds], Solution]

SOLVERS: dict[str, Solver] = {}


def register(name: str) -> Callable[[Solver], Solver]:
    """Make a solver available under ``name``."""

    def add(solver: Solver) -> Solver:
        if name in SOLVERS:
            raise ValueError(f"solver '{name}' is registered twice: {SOLVERS[name]} and {solver}")
        SOLVERS[name] = solver
        return solver

    return add


def solver_named(name: str) -> Solver:
    """The solver registered under ``name``.

    Raises:
        InputError: there is none; the message lists those that exist.
    """
    if name not in SOLVERS:
        raise InputError(f"solver '{name}': unknown; there are: {', '.join(sorted(SOLVERS))}")
    return SOLVERS[name]


def solve(problem: Problem, bounds: Bounds, solver: str = "auto") -> Solution:
    """The least damaging plan within ``bounds``.

    Args:
        problem: the tables.
        bounds: latency, peak memory, size; any of them may be None.
        solver: a registered name, or "auto": "dp" for at most one bound on latency or size,
            "milp" otherwise.

    Raises:
        InfeasibleError: no plan is within the bounds; the message has the least reachable.
        InputError: no such solver, or one that does not take these bounds.
    """
    if solver == "auto":
        given = bounds.given()
        solver = "dp" if len(given) <= 1 and "peak_memory_mb" not in given else "milp"
    return solver_named(solver)(problem, bounds)

"""The solver room: one plan for depth, width and length within a budget, with its proof."""

from edgeprune.solve import dp as _dp  # noqa: F401  (registers itself)
from edgeprune.solve import milp as _milp  # noqa: F401  (registers itself)
from edgeprune.solve.problem import Block, Bounds, FrontPoint, Problem, evaluate
from edgeprune.solve.registry import register, solve
from edgeprune.solve.solution import Certificate, Solution

__all__ = [
    "Block",
    "Bounds",
    "Certificate",
    "FrontPoint",
    "Problem",
    "Solution",
    "evaluate",
    "register",
    "solve",
]

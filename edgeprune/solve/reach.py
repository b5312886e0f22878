"""The least reachable of each bound, and the words to say when a budget cannot be met."""

from __future__ import annotations

import numpy as np

from edgeprune.errors import InfeasibleError
from edgeprune.solve.problem import Bounds, Problem, fits
from edgeprune.solve.trellis import least_resource, restrict, trellis_of

WORDS = {"latency_ms": "latency", "peak_memory_mb": "peak memory", "size_mb": "size"}


def least_reachable(problem: Problem, bound: str) -> float:
    """The least value any plan reaches of ``bound``, a field of ``Bounds``, in its unit."""
    if bound == "peak_memory_mb":
        return _least_peak(problem)
    return least_resource(trellis_of(problem, (bound,)))


def refuse_unreachable(problem: Problem, bounds: Bounds) -> None:
    """Check each bound alone.

    Raises:
        InfeasibleError: one is below what any plan reaches; says which, asked and reachable.
    """
    complaints = []
    for name, asked in bounds.given().items():
        least = least_reachable(problem, name)
        if not fits(least, asked):
            asked, least = (bounds.in_words(name, each) for each in (asked, least))
            complaints.append(f"{_bound_text(name, asked)}, the least reachable is {least:.6g}")
    if complaints:
        raise InfeasibleError(
            f"no plan meets the budget: {'; '.join(complaints)}. Raise the bound to at least that."
        )


def clash(problem: Problem, bounds: Bounds) -> InfeasibleError:
    """The error for bounds that are each reachable, but not together."""
    asked = []
    for name, value in bounds.given().items():
        least = bounds.in_words(name, least_reachable(problem, name))
        wanted = _bound_text(name, bounds.in_words(name, value))
        asked.append(f"{wanted} (least alone {least:.6g})")
    return InfeasibleError(
        f"no plan meets the budget: the bounds clash: {' and '.join(asked)} are each reachable, "
        "but not together. Raise one of them."
    )


def _bound_text(name: str, asked: float) -> str:
    return f"{WORDS[name]} asked ≤ {asked:.6g} {name.rsplit('_', 1)[1].replace('mb', 'MB')}"


def _least_peak(problem: Problem) -> float:
    """The least ``weights + largest activation``.

    The least weight under a limit on activations falls as the limit rises, so a range of limits
    whose most generous weight and least limit already lose is skipped whole.
    """
    used = np.concatenate([block.activation_mb.ravel() for block in problem.blocks])
    floor = problem.fixed_activation_mb
    limits = np.unique(np.append(np.maximum(used, floor), floor))
    trellis = trellis_of(problem, ("size_mb",))
    weights: dict[int, float] = {}

    def weight(index: int) -> float:
        if index not in weights:
            usable = [block.activation_mb <= limits[index] for block in problem.blocks]
            weights[index] = least_resource(restrict(trellis, usable))
        return weights[index]

    ranges = [(0, len(limits) - 1)]
    best = min(weight(index) + float(limits[index]) for index in ranges[0])
    while ranges:
        low, high = ranges.pop()
        if high - low < 2 or weight(high) + float(limits[low + 1]) >= best:
            continue
        middle = (low + high) // 2
        best = min(best, weight(middle) + float(limits[middle]))
        ranges += [(low, middle), (middle, high)]
    return best

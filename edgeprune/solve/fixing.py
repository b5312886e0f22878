"""Before the MILP: what a relaxation proves superfluous, a lower bound, and a first plan.

An option through which even the shortest path at the best prices is longer than a known plan's
damage cannot be part of a better plan (reduced-cost fixing; Nemhauser & Wolsey, 1988, II.5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeprune.solve.problem import (
    TOLERANCE,
    BoolArray,
    Bounds,
    FloatArray,
    FrontPoint,
    Problem,
    evaluate_all,
)
from edgeprune.solve.sweep import Prune, Reduce, Thin, sweep
from edgeprune.solve.trellis import Trellis, best_prices, restrict, shortest_through, trellis_of

SWEEP_CAP = 96
SEARCH_CAP = 96
# The relaxation's price of weight, a little raised: plans from it tend to be within the bound.
# A second sweep at another factor costs 0.2 s for 48 layers and gained 0.002 points of gap.
WEIGHT_FACTOR = 1.02
PRICE_FACTORS = np.array([[1.0, 1.0], [0.8, 1.0], [1.25, 1.0], [1.0, 0.8], [1.0, 1.25]])


@dataclass(frozen=True, eq=False)
class Fixed:
    """What is known before the MILP.

    Attributes:
        usable: per block ``[options, levels]``: what a better plan may still use.
        bound_damage: no plan within the bounds does less.
        points: plans found on the way, within the bounds or not.
    """

    usable: list[BoolArray]
    bound_damage: float
    points: tuple[FrontPoint, ...]


def fix(problem: Problem, bounds: Bounds, known: tuple[FrontPoint, ...]) -> Fixed:
    """Shrink the problem; every plan within ``bounds`` that beats ``points`` stays possible.

    Args:
        problem: the tables.
        bounds: what was asked.
        known: plans found already, within the bounds or not.
    """
    trellis, room = _relaxed(problem, bounds)
    prices, bound = best_prices(trellis, room)
    points = known + _swept_points(problem, float(prices[1]))
    limit = least_within(points, bounds)
    if bounds.peak_memory_mb is not None:
        usable = _usable(trellis, prices, room, limit)
        trellis = restrict(trellis, usable)
        room = _with_activation(problem, bounds.peak_memory_mb, usable, room)
        prices, tighter = best_prices(trellis, room)
        bound = max(bound, min(limit, tighter))
    trellis = restrict(trellis, _usable(trellis, prices, room, limit))
    prune = Prune(trellis, PRICE_FACTORS * prices, room, limit * (1 - TOLERANCE), SEARCH_CAP)
    points += _plans(problem, trellis, prune)
    limit = least_within(points, bounds)
    # Nothing was forgotten for being dominated here (two resources), so what the search did not
    # drop it has seen, also in view of activations.
    bound = max(bound, min(limit, prune.dropped_bound))
    return Fixed(_usable(trellis, prices, room, limit), bound, points)


def least_within(points: tuple[FrontPoint, ...], bounds: Bounds) -> float:
    """The least damage of the points within ``bounds``; ``inf`` when there is none."""
    return min((point.damage for point in points if bounds.allow(point)), default=np.inf)


def _relaxed(problem: Problem, bounds: Bounds) -> tuple[Trellis, FloatArray]:
    """Latency and weight, and the room for them.

    Peak memory is relaxed to weight plus the activation that every plan has, and to options whose
    activation fits beside the least weight. A resource without a bound gets room for anything.
    """
    trellis = trellis_of(problem, ("latency_ms", "size_mb"))
    steps = sum(float(stage.step_resource[0].max()) for stage in trellis.stages)
    anything = sum(stage.resource.max(axis=(1, 2)) for stage in trellis.stages)
    room = anything + trellis.tail.max(axis=1) + np.array([steps, 0.0])
    usable = [np.ones(block.latency_ms.shape, dtype=np.bool_) for block in problem.blocks]
    if bounds.latency_ms is not None:
        room[0] = bounds.latency_ms * (1 + TOLERANCE) - trellis.base[0]
    if bounds.size_mb is not None:
        room[1] = bounds.size_mb * (1 + TOLERANCE) - trellis.base[1]
    if bounds.peak_memory_mb is not None:
        peak = bounds.peak_memory_mb * (1 + TOLERANCE) - trellis.base[1]
        room[1] = min(room[1], peak - problem.fixed_activation_mb)
        least_weight = sum(float(block.weight_mb.min()) for block in problem.blocks)
        usable = [block.activation_mb <= peak - least_weight for block in problem.blocks]
    return restrict(trellis, usable), room


def _with_activation(
    problem: Problem, peak_memory_mb: float, usable: list[BoolArray], room: FloatArray
) -> FloatArray:
    """The room less the activation that no plan of usable options can avoid."""
    activation = max(
        float(np.where(allowed, block.activation_mb, np.inf).min())
        for block, allowed in zip(problem.blocks, usable, strict=True)
    )
    if not np.isfinite(activation):
        return room
    activation = max(activation, problem.fixed_activation_mb)
    weight = peak_memory_mb * (1 + TOLERANCE) - activation - problem.fixed_weight_mb
    return np.array([room[0], min(room[1], weight)])


def _swept_points(problem: Problem, weight_price: float) -> tuple[FrontPoint, ...]:
    """The front of latency against damage, with weight at a price added to the damage."""
    trellis = trellis_of(problem, ("latency_ms",))
    price = WEIGHT_FACTOR * weight_price
    stages = tuple(
        replace(stage, damage=stage.damage + price * block.weight_mb[:, None])
        for stage, block in zip(trellis.stages, problem.blocks, strict=True)
    )
    return _plans(problem, replace(trellis, stages=stages), Thin(SWEEP_CAP))


def _plans(problem: Problem, trellis: Trellis, reduce: Reduce) -> tuple[FrontPoint, ...]:
    swept = sweep(trellis, reduce)
    return evaluate_all(problem, swept.choices, swept.levels_after)


def _usable(
    trellis: Trellis, prices: FloatArray, room: FloatArray, limit: float
) -> list[BoolArray]:
    """Per block ``[options, levels]``: what a plan with less damage than ``limit`` may use."""
    most = limit + float(prices @ room)
    through = shortest_through(trellis, prices)
    return [(length <= most + TOLERANCE * abs(most)) & np.isfinite(length) for length in through]

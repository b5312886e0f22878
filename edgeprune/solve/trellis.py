"""The problem as a trellis: paths through token levels, and what they cost at given prices.

Pricing the resources (Lagrangian relaxation; Fisher, Management Science 27(1), 1981) turns the
problem into a shortest path, whose length bounds the damage of every plan within the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeprune.solve.problem import TOLERANCE, Block, BoolArray, FloatArray, Problem

ROUNDS = 60
FIRST_ZOOM = 8.0
LAST_ZOOM = 1.002
# Of what is paid for the room: more than its sums are off by. Where a plan fills the room to the
# last bit, that error, times a price that climbs, would pass for a bound.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Stage:
    """One block as the trellis sees it.

    Attributes:
        damage: ``[options, levels]``; ``inf`` = the option cannot be used there.
        resource: ``[resources, options, levels]``.
        may_select: ``[options]``.
        step_damage: ``[levels, levels]`` of dropping tokens after the block; ``inf`` where that
            is not possible; None: nowhere.
        step_resource: ``[resources, levels, levels]``, zeros where not possible.
    """

    damage: FloatArray
    resource: FloatArray
    may_select: BoolArray
    step_damage: FloatArray | None
    step_resource: FloatArray


@dataclass(frozen=True, eq=False)
class Trellis:
    """All stages in order.

    Attributes:
        stages: one per block.
        tail: ``[resources, levels]``, what runs after the last block.
        base: ``[resources]``, what every plan uses.
    """

    stages: tuple[Stage, ...]
    tail: FloatArray
    base: FloatArray


@dataclass(frozen=True, eq=False)
class Ahead:
    """The least ``damage + price * resource`` still ahead, for each of several prices.

    Attributes:
        before: ``[prices, blocks + 1, levels]``, before running a block.
        stay: ``[prices, blocks, levels]``, after it, keeping the tokens.
        drop: likewise, dropping some.
    """

    before: FloatArray
    stay: FloatArray
    drop: FloatArray


def trellis_of(problem: Problem, resources: tuple[str, ...]) -> Trellis:
    """The problem with ``resources`` out of "latency_ms" and "size_mb", in that order."""
    levels = len(problem.token_levels)
    tails = {"latency_ms": problem.tail, "size_mb": np.zeros(levels)}
    bases = {"latency_ms": problem.fixed_latency_ms, "size_mb": problem.fixed_weight_mb}
    return Trellis(
        stages=tuple(_stage(block, resources) for block in problem.blocks),
        tail=np.stack([tails[name] for name in resources]),
        base=np.array([bases[name] for name in resources]),
    )


def look_ahead(trellis: Trellis, prices: FloatArray) -> Ahead:
    """Shortest paths backwards, for ``[prices, resources]`` damage per unit of resource."""
    count, levels = len(trellis.stages), trellis.tail.shape[1]
    before = np.empty((len(prices), count + 1, levels))
    stay, drop = (np.full((len(prices), count, levels), np.inf) for _ in range(2))
    before[:, count] = prices @ trellis.tail
    for index in range(count - 1, -1, -1):
        stage = trellis.stages[index]
        cost = stage.damage + np.tensordot(prices, stage.resource, axes=1)
        stay[:, index] = before[:, index + 1]
        before[:, index] = cost.min(axis=1) + stay[:, index]
        if stage.step_damage is None:
            continue
        step = stage.step_damage + np.tensordot(prices, stage.step_resource, axes=1)
        drop[:, index] = (step + stay[:, index, None, :]).min(axis=2)
        selecting = cost[:, stage.may_select].min(axis=1) + drop[:, index]
        before[:, index] = np.minimum(before[:, index], selecting)
    return Ahead(before, stay, drop)


def least_ahead(trellis: Trellis) -> Ahead:
    """The least of each resource still ahead, whatever the damage; one "price" per resource."""
    harmless = tuple(
        replace(
            stage,
            damage=_only_infinite(stage.damage),
            step_damage=None if stage.step_damage is None else _only_infinite(stage.step_damage),
        )
        for stage in trellis.stages
    )
    return look_ahead(replace(trellis, stages=harmless), np.eye(len(trellis.base)))


def least_resource(trellis: Trellis) -> float:
    """What the cheapest plan uses of the only resource; ``inf`` when no plan is possible."""
    return float(trellis.base[0] + least_ahead(trellis).before[0, 0, 0])


def least_damage(trellis: Trellis) -> float:
    """The damage of the least damaging plan of all."""
    return float(look_ahead(trellis, np.zeros((1, len(trellis.base)))).before[0, 0, 0])


def best_prices(trellis: Trellis, room: FloatArray) -> tuple[FloatArray, float]:
    """The prices whose relaxation bounds the damage within ``room`` best.

    The bound is concave in the prices: a pattern search climbs it, and any point of the climb is
    a valid bound.

    Args:
        trellis: what to walk.
        room: ``[resources]``, the budget less the trellis's base.

    Returns:
        ``([resources] prices, bound)``: no plan within the room does less damage than ``bound``.
    """
    center = _slope_scale(trellis)
    best = -np.inf
    zoom = FIRST_ZOOM
    for _ in range(ROUNDS):
        factors = zoom ** np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
        grid = np.stack(np.meshgrid(*np.outer(center, factors)), axis=-1)
        prices = grid.reshape(-1, len(center))
        lengths, paid = look_ahead(trellis, prices).before[:, 0, 0], prices @ room
        duals = lengths - paid - ROUNDING * np.abs(paid)
        top = int(duals.argmax())
        climbed = duals[top] > best + TOLERANCE * abs(best) or best == -np.inf
        moved = climbed and not np.allclose(prices[top], center, rtol=1e-12, atol=0)
        if duals[top] > best:
            best, center = float(duals[top]), prices[top]
        zoom = zoom if moved else zoom**0.5
        if zoom < LAST_ZOOM:
            break
    return center, best


def shortest_through(trellis: Trellis, prices: FloatArray) -> list[FloatArray]:
    """Per block ``[options, levels]``: the shortest path that runs this option at this level."""
    ahead = look_ahead(trellis, prices[None])
    reached = np.full(trellis.tail.shape[1], np.inf)
    reached[0] = 0.0
    through = []
    for index, stage in enumerate(trellis.stages):
        cost = reached + stage.damage + np.tensordot(prices, stage.resource, axes=1)
        stay, drop = ahead.stay[0, index], ahead.drop[0, index]
        through.append(cost + np.where(stage.may_select[:, None], np.minimum(stay, drop), stay))
        reached = cost.min(axis=0)
        if stage.step_damage is not None:
            step = stage.step_damage + np.tensordot(prices, stage.step_resource, axes=1)
            selecting = cost[stage.may_select].min(axis=0)
            reached = np.minimum(reached, (selecting[:, None] + step).min(axis=0))
    return through


def restrict(trellis: Trellis, usable: list[BoolArray]) -> Trellis:
    """The trellis with only some options usable: ``[options, levels]`` per block."""
    stages = tuple(
        replace(stage, damage=np.where(allowed, stage.damage, np.inf))
        for stage, allowed in zip(trellis.stages, usable, strict=True)
    )
    return replace(trellis, stages=stages)


def _slope_scale(trellis: Trellis) -> FloatArray:
    """``[resources]`` damage per unit, in the order of magnitude of this problem."""
    finite = [stage.damage[np.isfinite(stage.damage)] for stage in trellis.stages]
    damage = sum(float(np.ptp(values)) for values in finite if values.size)
    resource = sum(np.ptp(stage.resource, axis=(1, 2)) for stage in trellis.stages)
    scale = np.ones(len(trellis.base))
    np.divide(damage, resource, out=scale, where=(resource > 0) & (damage > 0))
    return scale


def _only_infinite(damage: FloatArray) -> FloatArray:
    return np.where(np.isinf(damage), np.inf, 0.0)


def _stage(block: Block, resources: tuple[str, ...]) -> Stage:
    weight = np.repeat(block.weight_mb[:, None], block.levels, axis=1)
    used = {"latency_ms": block.latency_ms, "size_mb": weight}
    possible = block.possible_steps
    step = np.zeros((len(resources), *possible.shape))
    step_damage = None
    if possible.any():
        assert block.select_damage is not None and block.select_latency_ms is not None
        step_damage = np.where(possible, block.select_damage, np.inf)
        for row, name in enumerate(resources):
            if name == "latency_ms":
                step[row] = np.where(possible, block.select_latency_ms, 0.0)
    return Stage(
        damage=np.repeat(block.damage[:, None], block.levels, axis=1),
        resource=np.stack([used[name] for name in resources]),
        may_select=block.may_select,
        step_damage=step_damage,
        step_resource=step,
    )

"""Small random problems, and every plan of one by enumeration, priced on its own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from edgeprune.solve import Block, Bounds, Problem


@dataclass(frozen=True)
class Priced:
    """One enumerated plan."""

    choices: tuple[int, ...]
    levels_after: tuple[int, ...]
    latency_ms: float
    peak_memory_mb: float
    size_mb: float
    damage: float


def random_problem(seed: int, blocks: int, options: int, levels: int) -> Problem:
    """A problem of eighths, so that sums are exact in any order and ties are common."""
    rng = np.random.default_rng(seed)
    return Problem(
        token_levels=tuple(range(8 * levels, 0, -8)),
        blocks=tuple(
            _random_block(rng, f"block {index}", int(rng.integers(1, options + 1)), levels)
            for index in range(blocks)
        ),
        fixed_latency_ms=_eighths(rng, 16),
        fixed_weight_mb=_eighths(rng, 16),
        fixed_activation_mb=_eighths(rng, 24),
        tail_latency_ms=rng.integers(0, 8, levels) / 8 if rng.random() < 0.5 else None,
    )


def random_bounds(seed: int, plans: list[Priced], names: tuple[str, ...]) -> Bounds:
    """Bounds near those of a random plan: mostly binding, mostly reachable, not always."""
    rng = np.random.default_rng(seed)
    target = plans[int(rng.integers(len(plans)))]
    nudges = rng.integers(-2, 4, len(names)) / 16
    asked = {
        name: max(getattr(target, name) + nudge, 1 / 16)
        for name, nudge in zip(names, nudges, strict=True)
    }
    return Bounds(**asked)


def every_plan(problem: Problem) -> list[Priced]:
    """All of them."""
    levels = range(len(problem.token_levels))
    options = [range(len(block.options)) for block in problem.blocks]
    paths = [
        path
        for path in itertools.product(levels, repeat=len(problem.blocks))
        if all(a <= b for a, b in itertools.pairwise(path))
    ]
    priced = (
        _price(problem, choices, path) for choices in itertools.product(*options) for path in paths
    )
    return [plan for plan in priced if plan is not None]


def least_damage(plans: list[Priced], bounds: Bounds) -> float | None:
    """The best damage within the bounds; None when nothing is."""
    fitting = [
        plan.damage
        for plan in plans
        if all(getattr(plan, name) <= asked for name, asked in bounds.given().items())
    ]
    return min(fitting, default=None)


def front_of(plans: list[Priced]) -> list[tuple[float, float]]:
    """Non-dominated (latency, damage), by rising latency."""
    front: list[tuple[float, float]] = []
    for latency, damage in sorted((plan.latency_ms, plan.damage) for plan in plans):
        if not front or damage < front[-1][1]:
            front.append((latency, damage))
    return front


def _price(problem: Problem, choices: tuple[int, ...], path: tuple[int, ...]) -> Priced | None:
    latency, damage = problem.fixed_latency_ms, 0.0
    weight, activation = problem.fixed_weight_mb, problem.fixed_activation_mb
    here = 0
    for block, option, after in zip(problem.blocks, choices, path, strict=True):
        latency += block.latency_ms[option, here]
        damage += block.damage[option]
        weight += block.weight_mb[option]
        activation = max(activation, block.activation_mb[option, here])
        if after != here:
            if block.select_damage is None or block.select_latency_ms is None:
                return None
            if block.select_needs is not None and not block.select_needs[option]:
                return None
            if np.isinf(block.select_damage[here, after]):
                return None
            damage += block.select_damage[here, after]
            latency += block.select_latency_ms[here, after]
        here = after
    if problem.tail_latency_ms is not None:
        latency += problem.tail_latency_ms[here]
    return Priced(
        choices, path, float(latency), float(weight + activation), float(weight), float(damage)
    )


def _random_block(rng: np.random.Generator, name: str, options: int, levels: int) -> Block:
    select_damage = select_latency = needs = None
    if rng.random() < 0.6:
        select_damage = np.triu(rng.integers(0, 24, (levels, levels)) / 8, 1)
        select_damage[rng.random((levels, levels)) < 0.1] = np.inf
        np.fill_diagonal(select_damage, 0)
        select_latency = np.triu(rng.integers(0, 4, (levels, levels)) / 8, 1)
        needs = rng.random(options) < 0.6 if rng.random() < 0.6 else None
    return Block(
        name=name,
        options=tuple(f"option {index}" for index in range(options)),
        damage=rng.integers(0, 40, options) / 8,
        latency_ms=rng.integers(0, 40, (options, levels)) / 8,
        weight_mb=rng.integers(0, 24, options) / 8,
        activation_mb=rng.integers(0, 32, (options, levels)) / 8,
        select_damage=select_damage,
        select_latency_ms=select_latency,
        select_needs=needs,
    )


def _eighths(rng: np.random.Generator, most: int) -> float:
    return float(rng.integers(0, most)) / 8

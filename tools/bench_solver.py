"""How long the solver takes on a 48-layer model, and how far from optimal it may be.

Seeded problems: 48 layers, 17 choices of heads and 33 of neurons (none included), 8 token levels;
latencies from a simple formula with noise, damages convex with noise. The gap is the certificate's
on those, and the distance to enumeration on small ones. Times are of the process's one thread.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

# Before NumPy loads: the claim is about one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from _bench import claim, emit
from rich.console import Console
from rich.progress import track

from edgeprune.solve import Block, Bounds, Problem, Solution, evaluate, solve
from edgeprune.solve.problem import FloatArray, FrontPoint, evaluate_all

LAYERS = 48
TOKENS = 128
HEADS = 16
NEURON_GROUPS = 32
REPEATS = 3

# Share of the dense model's latency, peak memory and size.
Budget = tuple[float, float | None, float | None]
BUDGETS: tuple[Budget, ...] = (
    *((share, None, None) for share in (0.9, 0.75, 0.6, 0.45, 0.3)),
    *((0.6, 0.7, None), (0.6, None, 0.7), (0.4, None, 0.5)),
)


def transformer(seed: int, layers: int, heads: int, groups: int, levels: int) -> Problem:
    """A seeded encoder, in the rough proportions of a 100 MB to 1 GB one."""
    rng = np.random.default_rng(seed)
    tokens = np.unique(np.linspace(TOKENS, TOKENS // 8, levels).round().astype(int))[::-1]
    share = tokens / TOKENS
    blocks = []
    for layer in range(layers):
        depth = 1 + 1.5 * abs(layer / layers - 0.4)
        blocks.append(_attention(rng, layer / layers, depth, heads, share))
        blocks.append(_feed_forward(rng, layer, depth, groups, share))
    return Problem(
        token_levels=tuple(tokens.tolist()),
        blocks=tuple(blocks),
        fixed_latency_ms=layers / 16,
        fixed_weight_mb=layers / 2.4,
        fixed_activation_mb=3.0,
        tail_latency_ms=share * layers / 48,
    )


def _attention(
    rng: np.random.Generator, place: float, depth: float, heads: int, share: FloatArray
) -> Block:
    keep = np.arange(heads, -1, -1) / heads
    step = np.maximum(1 - share[None, :] / share[:, None], 0)
    return Block(
        name=f"{place:.2f}.heads",
        options=tuple(f"{round(part * heads)} heads" for part in keep),
        damage=_damage(rng, keep, depth),
        latency_ms=_latency(rng, keep, 0.6 * share + 0.15 * share**2),
        weight_mb=2.4 * keep,
        activation_mb=np.outer(0.4 + 2 * keep, share),
        select_damage=step**1.7 * rng.uniform(1.5, 6) * (1 - 0.8 * place),
        select_latency_ms=np.where(step > 0, 0.02 + 0.05 * share[:, None], 0.0),
        select_needs=keep > 0,
    )


def _feed_forward(
    rng: np.random.Generator, layer: int, depth: float, groups: int, share: FloatArray
) -> Block:
    keep = np.arange(groups, -1, -1) / groups
    return Block(
        name=f"{layer}.neurons",
        options=tuple(f"{round(part * groups)} groups" for part in keep),
        damage=_damage(rng, keep, depth),
        latency_ms=_latency(rng, keep, 1.1 * share),
        weight_mb=4.7 * keep,
        activation_mb=np.outer(0.4 + 2 * keep, share),
    )


def _damage(rng: np.random.Generator, keep: FloatArray, depth: float) -> FloatArray:
    curve = depth * rng.uniform(0.3, 1.5) * (1 - keep) ** rng.uniform(1.5, 3)
    return np.asarray(curve * np.exp(0.05 * rng.standard_normal(len(keep))))


def _latency(rng: np.random.Generator, keep: FloatArray, full: FloatArray) -> FloatArray:
    table = np.where(keep[:, None] > 0, 0.08 + np.outer(keep, full), 0.0)
    return np.asarray(table * rng.uniform(0.96, 1.04, table.shape))


def bounds_of(
    dense: FrontPoint, latency: float | None, peak: float | None, size: float | None
) -> Bounds:
    """Bounds as shares of the dense model."""
    return Bounds(
        latency_ms=None if latency is None else latency * dense.latency_ms,
        peak_memory_mb=None if peak is None else peak * dense.peak_memory_mb,
        size_mb=None if size is None else size * dense.size_mb,
    )


def dense_plan(problem: Problem) -> FrontPoint:
    """Everything kept."""
    nothing_cut = [0] * len(problem.blocks)
    return evaluate(problem, nothing_cut, nothing_cut)


def deep_rows(seeds: int) -> list[dict[str, Any]]:
    """48 layers, every seed and budget."""
    rows = []
    for seed, budget in _tracked(seeds, BUDGETS):
        problem = transformer(seed, LAYERS, HEADS, NEURON_GROUPS, levels=8)
        bounds = bounds_of(dense_plan(problem), *budget)
        solutions = [solve(problem, bounds) for _ in range(REPEATS)]
        rows.append(_row(f"{LAYERS} layers", seed, budget, solutions, None))
    return rows


def small_rows(seeds: int) -> list[dict[str, Any]]:
    """2 layers, small enough to enumerate."""
    rows = []
    for seed, budget in _tracked(seeds, BUDGETS):
        problem = transformer(seed, layers=2, heads=3, groups=4, levels=3)
        bounds = bounds_of(dense_plan(problem), *budget)
        best = min(point.damage for point in every_plan(problem) if bounds.allow(point))
        solution = solve(problem, bounds)
        rows.append(_row("2 layers", seed, budget, [solution], best))
    return rows


def every_plan(problem: Problem) -> tuple[FrontPoint, ...]:
    """All plans of a small problem."""
    options = [range(len(block.options)) for block in problem.blocks]
    choices = np.array(list(itertools.product(*options)))
    levels = range(len(problem.token_levels))
    points: tuple[FrontPoint, ...] = ()
    for path in itertools.combinations_with_replacement(levels, len(problem.blocks)):
        drops = np.diff([0, *path]) > 0
        possible = np.ones(len(choices), dtype=np.bool_)
        for index in np.flatnonzero(drops):
            possible &= problem.blocks[index].may_select[choices[:, index]]
        chosen = choices[possible]
        points += evaluate_all(problem, chosen, np.tile(path, (len(chosen), 1)))
    return points


def claims_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst of all rows; of times, the worst median of ``REPEATS`` runs."""
    deep = [row for row in rows if row["model"] == f"{LAYERS} layers"]
    single = [row for row in deep if row["solver"] == "dp"]
    gaps = [max(row["gap_pct"], row.get("off_best_pct", 0.0)) for row in rows]
    return [
        claim("seconds_48_layers", max(row["median_s"] for row in deep), "s", len(deep)),
        claim("seconds_one_bound", max(row["median_s"] for row in single), "s", len(single)),
        claim("max_gap_pct", max(gaps), "%", len(gaps)),
        claim("max_gap_pct_one_bound", max(row["gap_pct"] for row in single), "%", len(single)),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer seeds")
    arguments = parser.parse_args()
    deep_seeds, small_seeds = (1, 3) if arguments.quick else (5, 20)
    rows = deep_rows(deep_seeds) + small_rows(small_seeds)
    packages = ("edgeprune", "numpy", "scipy")
    emit("Solver", rows, claims_of(rows), arguments.json, packages)


def _tracked(seeds: int, budgets: tuple[Budget, ...]) -> Iterable[tuple[int, Budget]]:
    cases = list(itertools.product(range(seeds), budgets))
    return track(cases, "solving", console=Console(stderr=True), transient=True)


def _row(
    model: str, seed: int, budget: Budget, solutions: Sequence[Solution], best: float | None
) -> dict[str, Any]:
    solution = solutions[0]
    seconds = [each.certificate.seconds for each in solutions]
    names = ("latency", "peak", "size")
    asked = [f"{name} {part:.0%}" for name, part in zip(names, budget, strict=True) if part]
    certificate = solution.certificate
    row = {
        "model": model,
        "seed": seed,
        "budget": ", ".join(asked),
        "solver": certificate.solver,
        "min_s": round(min(seconds), 4),
        "median_s": round(statistics.median(seconds), 4),
        "damage": solution.damage,
        "gap_pct": certificate.gap_pct,
        "binding": certificate.binding,
        "front": len(solution.front),
    }
    if best is not None:
        row["off_best_pct"] = 100 * (solution.damage - best) / best if best else 0.0
    return row


if __name__ == "__main__":
    main()

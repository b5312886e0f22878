"""The solver's answer: a plan, the proof of how good it is, and the Pareto front around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgeprune.solve.problem import TOLERANCE, Bounds, FrontPoint


@dataclass(frozen=True)
class Certificate:
    """How good the plan is, proved.

    Attributes:
        solver: which solver found it.
        bound_damage: no plan within the bounds does less damage than this.
        gap_pct: ``100 * (damage - bound_damage) / damage``; 0 = optimal.
        exact: the plan is proved optimal.
        binding: the bound that costs damage ("latency", "peak_memory", "size"), the tightest of
            several; "none" when the least damaging plan of all fits.
        seconds: time spent solving.
        note: what else a reader should know, e.g. whether the front is exact.
    """

    solver: str
    bound_damage: float
    gap_pct: float
    exact: bool
    binding: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Solution:
    """The chosen plan with its certificate.

    Attributes:
        point: the plan and its predicted costs.
        bounds: what was asked.
        certificate: how good it is.
        front: plans of rising latency and falling damage, none better than another; latency is
            the axis and not bounded, peak memory and size keep to the bounds.
    """

    point: FrontPoint
    bounds: Bounds
    certificate: Certificate
    front: tuple[FrontPoint, ...]

    @property
    def choices(self) -> tuple[int, ...]:
        """The option of each block."""
        return self.point.choices

    @property
    def levels(self) -> tuple[int, ...]:
        """The token level with which each block runs."""
        return self.point.levels

    @property
    def levels_after(self) -> tuple[int, ...]:
        """The token level after each block."""
        return self.point.levels_after

    @property
    def latency_ms(self) -> float:
        """Predicted."""
        return self.point.latency_ms

    @property
    def peak_memory_mb(self) -> float:
        """Predicted."""
        return self.point.peak_memory_mb

    @property
    def size_mb(self) -> float:
        """Predicted."""
        return self.point.size_mb

    @property
    def damage(self) -> float:
        """Predicted."""
        return self.point.damage


def gap_pct(damage: float, bound_damage: float) -> float:
    """How far ``damage`` may be from optimal, in percent of itself."""
    return 100.0 * max(damage - bound_damage, 0.0) / damage if damage > 0 else 0.0


def pareto_points(points: Iterable[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Those that no other equals or beats in latency and damage, by rising latency."""
    front: list[FrontPoint] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, point.damage)):
        if not front or point.damage < front[-1].damage * (1 - TOLERANCE):
            front.append(point)
    return tuple(front)


def conclude(
    best: FrontPoint,
    bound_damage: float,
    bounds: Bounds,
    front: Iterable[FrontPoint],
    *,
    solver: str,
    least_damage: float,
    seconds: float,
    note: str,
) -> Solution:
    """Put an answer together: the front, the gap, and which bound it is that costs damage.

    Args:
        best: the least damaging plan that the solver found within ``bounds``.
        bound_damage: proved: no plan within ``bounds`` does less.
        bounds: what was asked.
        front: other plans found on the way.
        solver, seconds, note: for the certificate.
        least_damage: of any plan at all, bounds or not.
    """
    others = Bounds(peak_memory_mb=bounds.peak_memory_mb, size_mb=bounds.size_mb)
    points = pareto_points([best, *(point for point in front if others.allow(point))])
    best = min(
        (best, *(point for point in points if bounds.allow(point))),
        key=lambda point: (point.damage, point.latency_ms),
    )
    proved = best.damage <= bound_damage + TOLERANCE * abs(best.damage)
    bound = best.damage if proved else bound_damage
    certificate = Certificate(
        solver=solver,
        bound_damage=bound,
        gap_pct=gap_pct(best.damage, bound),
        exact=proved,
        binding=_binding(best, bounds, least_damage),
        seconds=seconds,
        note=note,
    )
    return Solution(best, bounds, certificate, points)


def _binding(point: FrontPoint, bounds: Bounds, least_damage: float) -> str:
    given = bounds.given()
    if not given or point.damage <= least_damage + TOLERANCE * abs(least_damage):
        return "none"
    slack = {name: 1 - getattr(point, name) / bound for name, bound in given.items()}
    return min(slack, key=lambda name: slack[name]).rsplit("_", 1)[0]

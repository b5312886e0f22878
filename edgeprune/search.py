"""From a budget to one plan: solve, measure the candidates, correct, choose by what they do."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune import console
from edgeprune.budget import AbsoluteBudget
from edgeprune.cost import CostTable
from edgeprune.devices import Device, Workload
from edgeprune.formulate import Choices, formulate, plan_of
from edgeprune.importance import Damage, Evidence
from edgeprune.lower import lower
from edgeprune.lower.artifact import Precision
from edgeprune.plan import Plan
from edgeprune.program.program import Program, as_tuple
from edgeprune.recover.refit import refit
from edgeprune.sites import Sites
from edgeprune.solve import Bounds, Solution, solve
from edgeprune.surgery import apply
from edgeprune.task import Batch, Task
from edgeprune.validate.timing import MB_PER_MIB

ROUNDS = 3
# The solver aims a little below the budget: interleaved medians repeat within about 1%.
MARGIN = 0.985
# Single-site damages do not add up: joint plans with these factors on one axis are candidates too.
VARIANTS: tuple[Mapping[str, float], ...] = (
    {},
    {"length": 0.5},
    {"length": 2.0},
    {"depth": 0.5},
    {"depth": 2.0},
)
MEASURED_ROUNDS = 30


@dataclass(frozen=True)
class Candidate:
    """One plan with what was predicted and what was found.

    Attributes:
        predicted_ms: by the cost table, with the correction of its round.
        measured_ms: median on the device; None without one.
        damage: predicted output movement, relative to the outputs' spread.
        score: after the least-squares refit: the task's validation score, or minus the measured
            output movement where the task has none; None when it was over budget.
    """

    plan: Plan
    predicted_ms: float
    measured_ms: float | None
    damage: float
    score: float | None = None


@dataclass(frozen=True)
class Round:
    """One pass of solving and measuring.

    Attributes:
        correction: measured over predicted latency, as known before the round.
        dense_ms: the dense model's median in the same measurement.
    """

    correction: float
    bound_ms: float | None
    dense_ms: float | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class SearchResult:
    """The chosen plan and how it was found."""

    plan: Plan
    solution: Solution
    rounds: tuple[Round, ...]

    @property
    def chosen(self) -> Candidate:
        """The candidate that won."""
        return next(c for c in self.rounds[-1].candidates if c.plan == self.plan)

    def to_json(self) -> dict[str, Any]:
        """As stored in the build folder."""
        rounds = [
            asdict(r) | {"candidates": [_candidate_json(c) for c in r.candidates]}
            for r in self.rounds
        ]
        return {
            "plan": self.plan.to_json(),
            "solution": self.solution.to_json(),
            "rounds": rounds,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> SearchResult:
        """Read what :meth:`to_json` gave."""
        rounds = tuple(
            Round(**r | {"candidates": tuple(_candidate(c) for c in r["candidates"])})
            for r in body["rounds"]
        )
        return cls(Plan.from_json(body["plan"]), Solution.from_json(body["solution"]), rounds)


@dataclass(frozen=True)
class Search:
    """What a search works with.

    Attributes:
        device: measures candidates; None leaves them predicted.
        dense: the lowered dense model, interleaved as the yardstick.
        folder: where candidates are lowered to.
    """

    sites: Sites
    choices: tuple[Choices, ...]
    levels: tuple[int, ...]
    damage: Damage
    table: CostTable
    bounds: AbsoluteBudget
    task: Task
    calibration: Sequence[Batch]
    precision: Precision
    device: Device | None
    dense: Path | None
    folder: Path
    solver: str = "auto"

    def run(self) -> SearchResult:
        """Solve until a measured candidate meets the latency budget, at most ``ROUNDS`` times.

        Raises:
            InfeasibleError: no plan meets the bounds; says which bound and the least reachable.
        """
        rounds: list[Round] = []
        correction = 1.0
        while True:
            solution, found = self._solve(correction)
            dense_ms, found = self._measure(found)
            within = [c for c in found if self._fits(c)]
            last = len(rounds) + 1 == ROUNDS or bool(within)
            if last:
                found = self._scored(within or found[:1], found)
            bound = self.bounds.latency_ms
            rounds.append(Round(correction, bound, dense_ms, tuple(found)))
            if last:
                best = max(found, key=lambda c: (c.score is not None, c.score or 0.0))
                return SearchResult(best.plan, solution, tuple(rounds))
            ratios = [c.measured_ms / c.predicted_ms for c in found if c.measured_ms]
            correction *= statistics.median(ratios)
            console.say(
                f"  measured {100 * (statistics.median(ratios) - 1):+.1f}% against predicted, over "
                f"budget: correcting the table by {correction:.3f} and solving again"
            )

    def _solve(self, correction: float) -> tuple[Solution, list[Candidate]]:
        latency = self.bounds.latency_ms
        memory, size = self.bounds.peak_memory_mb, self.bounds.size_mb
        bounds = Bounds(
            None if latency is None else MARGIN * latency / correction,
            None if memory is None else memory / MB_PER_MIB,
            None if size is None else size / MB_PER_MIB,
        )
        solutions = []
        with console.progress("solving", len(VARIANTS), "plans") as advance:
            for weights in VARIANTS:
                problem = formulate(
                    self.sites, self.choices, self.levels, self.damage, self.table, weights
                )
                solutions.append(solve(problem, bounds, self.solver))
                advance(1)
        plans: dict[str, Candidate] = {}
        for solution in solutions:
            plan = plan_of(self.sites, self.choices, self.levels, self.damage, solution.point)
            predicted = solution.latency_ms * correction
            plans.setdefault(plan.hash, Candidate(plan, predicted, None, solution.damage))
        return solutions[0], list(plans.values())

    def _measure(self, candidates: list[Candidate]) -> tuple[float | None, list[Candidate]]:
        """The dense median and the candidates with their measured medians, all interleaved."""
        if self.device is None or self.dense is None:
            return None, candidates
        example = tuple(each[:1] for each in self.sites.program.example_inputs)
        workloads = [Workload("dense", self.dense, example)]
        with console.progress("lowering candidates", len(candidates), "plans") as advance:
            for candidate in candidates:
                path = self.folder / f"candidate-{candidate.plan.hash[:16]}.pte"
                if not path.exists():
                    program = apply(self.sites.program, candidate.plan, self.sites)
                    lower(program, path, self.precision)
                workloads.append(Workload(candidate.plan.hash, path, example))
                advance(1)
        measured = self.device.measure(workloads, rounds=MEASURED_ROUNDS)
        percentile = self.bounds.percentile
        times = {name: m.percentile_ms(percentile) for name, m in measured.items()}
        return times["dense"], [replace(c, measured_ms=times[c.plan.hash]) for c in candidates]

    def _fits(self, candidate: Candidate) -> bool:
        bound = self.bounds.latency_ms
        if bound is None or candidate.measured_ms is None:
            return True
        return candidate.measured_ms <= bound

    def _scored(self, chosen: list[Candidate], every: list[Candidate]) -> list[Candidate]:
        """All candidates, the chosen ones with their score after the refit."""
        scores: dict[str, float] = {}
        with console.progress("scoring candidates", len(chosen), "plans") as advance:
            for candidate in chosen:
                program = refit(self.sites, candidate.plan, self.calibration)
                scores[candidate.plan.hash] = self._score(program)
                advance(1, f"{scores[candidate.plan.hash]:.4f}")
        return [replace(c, score=scores.get(c.plan.hash)) for c in every]

    @torch.no_grad()
    def _score(self, program: Program) -> float:
        score = self.task.validate(lambda batch: program(*batch))
        if score is not None:
            return float(np.mean(score))
        evidence = Evidence(self.sites, self.calibration)
        return -evidence.moved(as_tuple(program(*batch)) for batch in evidence.batches)


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return asdict(candidate) | {"plan": candidate.plan.to_json()}


def _candidate(body: dict[str, Any]) -> Candidate:
    return Candidate(**body | {"plan": Plan.from_json(body["plan"])})

"""From a budget to one plan: solve, measure the candidates, correct, choose by what they do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
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
from edgeprune.recover import distil, refit
from edgeprune.sites import Sites
from edgeprune.solve import Bounds, Certificate, FrontPoint, solve
from edgeprune.surgery import apply
from edgeprune.task import Batch, Task
from edgeprune.validate.timing import MB_PER_MIB

ROUNDS = 3
# The solver aims a little below the budget: interleaved medians repeat within about 1%.
MARGIN = 0.985
# Single-site damages do not add up across axes, so plans are also solved for with an axis'
# damage halved or doubled, and further in a direction that scores better, so many times.
AXIS_FACTORS = (0.5, 2.0)
PASSES = 4
MEASURED_ROUNDS = 30


@dataclass(frozen=True)
class Candidate:
    """One plan with what was predicted and what was found.

    Attributes:
        predicted_ms: by the cost table, with the correction of its round.
        measured_ms: median on the device; None without one.
        damage: predicted output movement, relative to the outputs' spread.
        weights: axis -> factor on its damage with which the plan was solved for.
        certificate: how good the plan is under those weights, proved.
        score: after the refit and the trial distillation: the task's validation score, or minus
            the measured output movement where the task has none; None when it was over budget.
    """

    plan: Plan
    predicted_ms: float
    measured_ms: float | None
    damage: float
    weights: Mapping[str, float]
    certificate: Certificate
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
    """The chosen plan and how it was found.

    Attributes:
        front: plans of rising latency and falling damage, with every axis' damage as measured.
    """

    front: tuple[FrontPoint, ...]
    rounds: tuple[Round, ...]

    @property
    def chosen(self) -> Candidate:
        """The candidate that won."""
        return _best([c for each in self.rounds for c in each.candidates])

    @property
    def plan(self) -> Plan:
        """The plan of the candidate that won."""
        return self.chosen.plan

    def to_json(self) -> dict[str, Any]:
        """As stored in the build folder."""
        rounds = [
            asdict(r) | {"candidates": [_candidate_json(c) for c in r.candidates]}
            for r in self.rounds
        ]
        return {"front": [asdict(point) for point in self.front], "rounds": rounds}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> SearchResult:
        """Read what :meth:`to_json` gave."""
        rounds = tuple(
            Round(**r | {"candidates": tuple(_candidate(c) for c in r["candidates"])})
            for r in body["rounds"]
        )
        front = tuple(FrontPoint.from_json(point) for point in body["front"])
        return cls(front, rounds)


@dataclass(frozen=True)
class Search:
    """What a search works with.

    Attributes:
        device: measures candidates; None leaves them predicted.
        dense: the lowered dense model, interleaved as the yardstick.
        folder: where candidates are lowered to.
        trial_steps: of distillation before a candidate is scored, if the task gives training
            batches; which plan is best before it is not always best after.
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
    trial_steps: int = 0

    @cached_property
    def evidence(self) -> Evidence:
        """The dense outputs that candidates of a task without a validation score are held to."""
        return Evidence(self.sites, self.calibration)

    def run(self) -> SearchResult:
        """Bring the solver's plans to the measured budget, then look around the best of them.

        Raises:
            InfeasibleError: no plan meets the bounds; says which bound and the least reachable.
        """
        front, rounds = self._within_budget()
        for _ in range(PASSES):
            best = SearchResult(front, tuple(rounds)).chosen
            if best.score is None:
                break
            _, more = self._round(rounds[-1].correction, _around(best.weights), _hashes(rounds))
            rounds.append(more)
            if _best([best, *more.candidates]) is best:
                break
        return SearchResult(front, tuple(each for each in rounds if each.candidates))

    def _within_budget(self) -> tuple[tuple[FrontPoint, ...], list[Round]]:
        """The front, and at most ``ROUNDS`` rounds: those over budget are solved for again."""
        rounds: list[Round] = []
        front: tuple[FrontPoint, ...] = ()
        correction, variants = 1.0, [{}, *_around({})]
        while variants and len(rounds) < ROUNDS:
            points, found = self._round(correction, variants, _hashes(rounds))
            front = front or points
            rounds.append(found)
            over = [c for c in found.candidates if c.score is None]
            variants = [dict(c.weights) for c in over]
            if variants:
                correction *= self._miss(over, found.bound_ms)
        return front, rounds

    def _miss(self, over: Sequence[Candidate], bound_ms: float | None) -> float:
        """Measured over predicted latency of the plans over budget; says so."""
        off = statistics.median(c.measured_ms / c.predicted_ms for c in over if c.measured_ms)
        if bound_ms and self.bounds.latency_ms:  # what is only a slower moment is no error
            off *= self.bounds.latency_ms / bound_ms
        console.say(
            f"  {len(over)} over budget, measured {100 * (off - 1):+.1f}% against predicted: "
            "correcting the table and solving again"
        )
        return off

    def _round(
        self,
        correction: float,
        variants: Sequence[Mapping[str, float]],
        known: Collection[str] = (),
    ) -> tuple[tuple[FrontPoint, ...], Round]:
        """Solve, measure and score; the front too. Plans already ``known`` are left out."""
        front, found = self._solve(correction, variants)
        dense_ms, found = self._measure([c for c in found if c.plan.hash not in known])
        bound = self.bounds.latency_beside(dense_ms)
        return front, Round(correction, bound, dense_ms, tuple(self._scored(found, bound)))

    def _solve(
        self, correction: float, variants: Sequence[Mapping[str, float]]
    ) -> tuple[tuple[FrontPoint, ...], list[Candidate]]:
        """The front of the first variant, and every variant's plan."""
        latency = self.bounds.latency_ms
        memory, size = self.bounds.peak_memory_mb, self.bounds.size_mb
        bounds = Bounds(
            None if latency is None else MARGIN * latency / correction,
            None if memory is None else memory / MB_PER_MIB,
            None if size is None else size / MB_PER_MIB,
        )
        solutions = []
        with console.progress("solving", len(variants), "plans") as advance:
            for weights in variants:
                problem = formulate(
                    self.sites, self.choices, self.levels, self.damage, self.table, weights
                )
                solutions.append(solve(problem, bounds, self.solver))
                advance(1)
        plans: dict[str, Candidate] = {}
        for weights, solution in zip(variants, solutions, strict=True):
            plan = plan_of(self.sites, self.choices, self.levels, self.damage, solution.point)
            predicted = solution.latency_ms * correction
            found = Candidate(plan, predicted, None, solution.damage, weights, solution.certificate)
            plans.setdefault(plan.hash, found)
        return solutions[0].front, list(plans.values())

    def _measure(self, candidates: list[Candidate]) -> tuple[float | None, list[Candidate]]:
        """The dense median and the candidates with their measured medians, all interleaved."""
        if self.device is None or self.dense is None or not candidates:
            return None, candidates
        example = tuple(each[:1] for each in self.sites.program.example_inputs)
        workloads = [Workload("dense", self.dense, example)]
        with console.progress("lowering candidates", len(candidates), "plans") as advance:
            for candidate in candidates:
                path = self.folder / f"candidate-{candidate.plan.hash}.pte"
                if not path.exists():
                    program = apply(self.sites.program, candidate.plan, self.sites)
                    lower(program, path, self.precision)
                workloads.append(Workload(candidate.plan.hash, path, example))
                advance(1)
        measured = self.device.measure(workloads, rounds=MEASURED_ROUNDS)
        percentile = self.bounds.percentile
        times = {name: m.percentile_ms(percentile) for name, m in measured.items()}
        return times["dense"], [replace(c, measured_ms=times[c.plan.hash]) for c in candidates]

    def _scored(self, candidates: list[Candidate], bound_ms: float | None) -> list[Candidate]:
        """All candidates, those within the budget with their score after some recovery."""
        scores: dict[str, float] = {}
        within = [c for c in candidates if _fits(c, bound_ms)]
        with console.progress("scoring candidates", len(within), "plans") as advance:
            for candidate in within:
                scores[candidate.plan.hash] = self._score(self._recovered(candidate.plan))
                advance(1, f"{scores[candidate.plan.hash]:.4f}")
        return [replace(c, score=scores.get(c.plan.hash)) for c in candidates]

    def _recovered(self, plan: Plan) -> Program:
        program = refit(self.sites, plan, self.calibration)
        batches = self.task.train_batches() if self.trial_steps else None
        if batches is None:
            return program
        dense = self.sites.program
        return distil(program, dense, batches, steps=self.trial_steps, seed=0).program

    @torch.no_grad()
    def _score(self, program: Program) -> float:
        score = self.task.validate(lambda batch: program(*batch))
        if score is not None:
            return float(np.mean(score))
        outputs = (as_tuple(program(*batch)) for batch in self.evidence.batches)
        return -self.evidence.moved(outputs)


def _hashes(rounds: Sequence[Round]) -> set[str]:
    return {c.plan.hash for each in rounds for c in each.candidates}


def _fits(candidate: Candidate, bound_ms: float | None) -> bool:
    return bound_ms is None or (candidate.measured_ms or 0.0) <= bound_ms


def _around(weights: Mapping[str, float]) -> list[dict[str, float]]:
    """The weights with one axis' factor moved; the width's is the unit of the others."""
    return [
        {**weights, axis: weights.get(axis, 1.0) * factor}
        for axis in ("length", "depth")
        for factor in AXIS_FACTORS
    ]


def _best(candidates: Sequence[Candidate]) -> Candidate:
    """The highest score; of equals, and of candidates that are all over budget, the fastest."""

    def rank(candidate: Candidate) -> tuple[float, float]:
        score = -math.inf if candidate.score is None else candidate.score
        return score, -(candidate.measured_ms or candidate.predicted_ms)

    return max(candidates, key=rank)


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return asdict(candidate) | {"plan": candidate.plan.to_json()}


def _candidate(body: dict[str, Any]) -> Candidate:
    certificate = Certificate(**body["certificate"])
    return Candidate(**body | {"plan": Plan.from_json(body["plan"]), "certificate": certificate})

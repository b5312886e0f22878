"""From a budget to one plan: solve, measure the candidates, correct, choose by what they do."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from edgeprune import console, files
from edgeprune.budget import AbsoluteBudget
from edgeprune.candidates import Candidate, Correction, Round, SearchResult, corrections
from edgeprune.cluster import IN_PROCESS, Cluster
from edgeprune.cost import CostTable
from edgeprune.devices import Device, Measurement, Workload
from edgeprune.errors import InfeasibleError
from edgeprune.formulate import Choices, damage_of, formulate, plan_of
from edgeprune.importance import Damage
from edgeprune.lower.artifact import static_graph
from edgeprune.lower.lowering import Lowering, lower_graph
from edgeprune.plan import Plan
from edgeprune.sites import Sites
from edgeprune.solve import Bounds, FrontPoint, solve
from edgeprune.stages import CANDIDATES
from edgeprune.surgery import apply
from edgeprune.task import Batch, Task
from edgeprune.trial import Scored, Trial
from edgeprune.validate.timing import MB_PER_MIB

ROUNDS = 3
# Medians in turns repeat within 1 to 2%, and the plan is measured once more at the end: the solver
# aims below the budget, and a candidate that is within it by a hair is not within it.
AIM = 0.98
WITHIN = 0.99
# Plans that take less than this share of what was predicted were cut for nothing.
CLOSE = 0.9
# One correction asks the table for no less than this part of what the plan before it said.
LEAST_LEFT = 0.5
# Single-site damages do not add up across axes, so plans are also solved for with an axis'
# damage up to halved or doubled, and further in a direction that scores better, so many times.
AXIS_FACTORS = (0.5, 0.7, 1.4, 2.0)
PASSES = 4
MEASURED_ROUNDS = 30


@dataclass(frozen=True)
class Search:
    """What a search works with.

    Attributes:
        device: measures candidates; None leaves them predicted.
        dense: the lowered dense model, interleaved as the yardstick.
        folder: where candidates are lowered to, for as long as they are measured.
        trial_steps, trial_minutes: of distillation before a candidate is scored; see ``Trial``.
        cluster: where candidates are lowered and scored.
    """

    sites: Sites
    choices: tuple[Choices, ...]
    levels: tuple[int, ...]
    damage: Damage
    table: CostTable
    bounds: AbsoluteBudget
    task: Task
    calibration: Sequence[Batch]
    lowering: Lowering
    device: Device | None
    dense: Path | None
    folder: Path
    solver: str = "auto"
    trial_steps: int = 0
    trial_minutes: float | None = None
    seed: int = 0
    cluster: Cluster = IN_PROCESS

    @cached_property
    def _trial(self) -> Trial:
        recovery = (self.trial_steps, self.trial_minutes, self.seed)
        return Trial(self.sites, self.task, self.calibration, *recovery)

    @cached_property
    def _axes(self) -> tuple[str, ...]:
        """The axes whose damage can be weighed against the width's: those with a choice in them."""
        removable = any(0 in (o.units for o in choice.options) for choice in self.choices)
        shortened = len(self.levels) > 1 and any(choice.stream for choice in self.choices)
        return ("length",) * shortened + ("depth",) * removable

    def run(self) -> SearchResult:
        """Bring the solver's plans to the measured budget, then look around the best of them.

        Raises:
            InfeasibleError: no plan meets the bounds; says which bound and the least reachable.
        """
        return self._explored(self._within_budget(SearchResult((), ()), Correction(), {}))

    def again(
        self, found: SearchResult, finished: Candidate, bound_ms: float | None
    ) -> SearchResult:
        """Solve again, after the finished file of the chosen plan was measured over budget.

        Other plans' measurements are taken to be off by as much as the chosen plan's was.

        Args:
            finished: the chosen candidate with the file's own costs.
            bound_ms: the latency bound in the file's measurement.

        Raises:
            InfeasibleError: as ``run``, where no plan measured so far is within budget either.
        """
        before = next(each for each in found.rounds if found.chosen in each.candidates)
        slower = 1.0
        if bound_ms and before.bound_ms and finished.measured_ms and found.chosen.measured_ms:
            promised = found.chosen.measured_ms / before.bound_ms
            slower = finished.measured_ms / bound_ms / promised
        judged = [self._judged(each, finished.plan, slower) for each in found.rounds]
        moment = bound_ms / before.bound_ms if bound_ms and before.bound_ms else 1.0
        dense_ms = before.dense_ms and moment * before.dense_ms
        last = Round(before.correction, bound_ms, dense_ms, (replace(finished, score=None),))
        start = SearchResult(found.front, (*judged, last))
        correction = self._corrected(last, last.candidates)
        return self._explored(self._within_budget(start, correction, finished.weights))

    def _judged(self, known: Round, failed: Plan, slower: float) -> Round:
        """The round without the scores of plans that are over budget where all is slower."""
        candidates = [
            replace(c, score=None)
            if c.plan == failed
            or not self._fits(replace(c, measured_ms=slower * (c.measured_ms or 0)), known.bound_ms)
            else c
            for c in known.candidates
        ]
        return replace(known, candidates=tuple(candidates))

    def _explored(self, found: SearchResult) -> SearchResult:
        """The same, and plans around the best one for as long as that makes it better."""
        for _ in range(PASSES):
            best = found.chosen
            if best.score is None or not self._axes:
                break
            correction, known = found.rounds[-1].correction, _hashes(found.rounds)
            _, more = self._round(correction, _around(best.weights, self._axes), known)
            if more.candidates:
                found = replace(found, rounds=(*found.rounds, more))
            if found.chosen is best:
                break
        return found

    def _within_budget(
        self, start: SearchResult, correction: Correction, weights: Mapping[str, float]
    ) -> SearchResult:
        """Plans over budget are solved for again, until ``ROUNDS`` corrections were tried."""
        front, rounds = start.front, list(start.rounds)
        every = variants = [dict(weights), *_around(weights, self._axes)]
        while variants and len(corrections(rounds)) < ROUNDS:
            try:
                points, found = self._round(correction, variants, _hashes(rounds))
            except InfeasibleError:
                if any(c.score is not None for each in rounds for c in each.candidates):
                    break  # the correction asks too much, and there are plans that do
                raise
            front = front or points
            if found.candidates:
                rounds.append(found)
            missed = [c for c in found.candidates if c.score is None] or self._overpriced(found)
            # Several weights have one plan where a table is far off, and may have others next.
            all_missed = len(missed) == len(found.candidates)
            variants = every if missed and all_missed else [dict(c.weights) for c in missed]
            if missed and len(corrections(rounds)) < ROUNDS:
                correction = self._corrected(found, missed)
        return SearchResult(front, tuple(rounds))

    def _overpriced(self, found: Round) -> list[Candidate]:
        """All plans of a round, if they were cut to the latency of a table that is far too high."""
        bound, asked = found.bound_ms, self.bounds.latency_ms
        pairs = [(c.measured_ms, c.predicted_ms) for c in found.candidates]
        if not (bound and asked and all(got and said > CLOSE * asked for got, said in pairs)):
            return []
        shares = [(got or 0.0) / bound / (said / asked) for got, said in pairs]
        return list(found.candidates) if statistics.median(shares) < CLOSE else []

    def _corrected(self, found: Round, missed: Sequence[Candidate]) -> Correction:
        """The correction, as plans of a round that missed the budget say; what it is, is said."""
        bounds, known = self.bounds, found.correction
        over = any(c.score is None for c in missed)
        limit = found.bound_ms and (WITHIN * found.bound_ms if over else 0.0)
        costs = [self.table.predict(self.sites, c.plan) for c in missed]
        factors = [
            self._latency_factor(found, cost.latency_ms, c.measured_ms) / known.latency
            for c, cost in zip(missed, costs, strict=True)
            if limit is not None and c.measured_ms and c.measured_ms > limit
        ]
        memory = [cost.peak_memory_mb * MB_PER_MIB * known.memory for cost in costs]
        sizes = [cost.size_mb * MB_PER_MIB * known.size for cost in costs]
        off = Correction(
            statistics.median(factors) if factors else 1.0,
            _off([c.peak_memory_mb for c in missed], memory, bounds.peak_memory_mb),
            _off([c.size_mb for c in missed], sizes, bounds.size_mb),
        )
        words = [f"{n} {100 * (f - 1):+.1f}%" for n, f in asdict(off).items() if f != 1.0]
        console.say(
            f"  {len(missed)} {'over' if over else 'far below'} budget: correcting the table "
            f"({', '.join(words)}) and solving again"
        )
        return Correction(
            known.latency * off.latency, known.memory * off.memory, known.size * off.size
        )

    def _latency_factor(self, found: Round, said_ms: float, measured_ms: float) -> float:
        """The factor on the table with which a plan like this one meets the latency bound.

        On the straight line through the dense model, predicted and measured, and the plan: a
        table that is right about the dense model errs in what a cut saves. EfficientNet-lite0 cut
        to 59, 47 and 43% by the table takes 73, 65 and 63%: two thirds of it is saved every time.

        Args:
            said_ms: by the table as it was measured.
        """
        asked, bound, dense_ms = self.bounds.latency_ms, found.bound_ms, found.dense_ms
        assert asked and bound
        whole = self.table.predict(self.sites, Plan(self.sites.program.fingerprint)).latency_ms
        if dense_ms is None or measured_ms >= dense_ms or said_ms >= whole:
            return measured_ms / said_ms * asked / bound
        said, took, wanted = said_ms / whole, measured_ms / dense_ms, AIM * bound / dense_ms
        along = 1 - (1 - wanted) * (1 - said) / (1 - took)
        return AIM * asked / (max(along, LEAST_LEFT * said) * whole)

    def _round(
        self,
        correction: Correction,
        variants: Sequence[Mapping[str, float]],
        known: Collection[str] = (),
    ) -> tuple[tuple[FrontPoint, ...], Round]:
        """Solve, measure and score; the front too. Plans already ``known`` are left out."""
        front, found = self._solve(correction, variants)
        dense_ms, found = self._measure([c for c in found if c.plan.hash not in known])
        bound = self.bounds.latency_beside(dense_ms)
        return front, Round(correction, bound, dense_ms, tuple(self._scored(found, bound)))

    def _solve(
        self, correction: Correction, variants: Sequence[Mapping[str, float]]
    ) -> tuple[tuple[FrontPoint, ...], list[Candidate]]:
        """The front of the first variant, and every variant's plan."""
        latency = self.bounds.latency_ms
        memory, size = self.bounds.peak_memory_mb, self.bounds.size_mb
        said = {
            "latency_ms": correction.latency / AIM,
            "peak_memory_mb": MB_PER_MIB * correction.memory * self.table.resident,
            "size_mb": MB_PER_MIB * correction.size,
        }
        bounds = Bounds(
            None if latency is None else latency / said["latency_ms"],
            None if memory is None else memory / said["peak_memory_mb"] + self.table.unread_mb,
            None if size is None else size / said["size_mb"],
            said,
            self.table.unread_mb,
        )
        solutions = []
        with console.progress("solving", len(variants), "plans") as advance:
            for weights in variants:
                problem = formulate(
                    self.sites, self.choices, self.levels, self.damage, self.table, weights
                )
                try:
                    solutions.append(solve(problem, bounds, self.solver))
                except InfeasibleError as error:
                    if self.device:
                        raise
                    raise InfeasibleError(f"{error} Costs are estimates.") from error
                advance(1)
        plans: dict[str, Candidate] = {}
        for weights, solution in zip(variants, solutions, strict=True):
            plan = plan_of(self.sites, self.choices, self.levels, self.damage, solution.point)
            predicted = solution.latency_ms * correction.latency
            damage = damage_of(plan, self.choices, self.damage)
            found = Candidate(plan, predicted, None, damage, weights, solution.certificate)
            plans.setdefault(plan.hash, found)
        return solutions[0].front, list(plans.values())

    def _measure(self, candidates: list[Candidate]) -> tuple[float | None, list[Candidate]]:
        """The dense latency and the candidates with theirs, measured in turns."""
        if self.device is None or self.dense is None or not candidates:
            return None, candidates
        example = tuple(each[:1] for each in self.sites.program.example_inputs)
        workloads = [Workload("dense", self.dense, example)]
        plans = [candidate.plan for candidate in candidates]
        made = self.cluster.map(partial(_lowered, self.sites, self.lowering), plans)
        memory = self.bounds.peak_memory_mb is not None
        with tempfile.TemporaryDirectory(prefix=CANDIDATES, dir=self.folder) as folder:
            with console.progress("lowering candidates", len(candidates), "plans") as advance:
                for plan, data in zip(plans, made, strict=True):
                    path = Path(folder, f"{plan.hash}{self.lowering.suffix}")
                    workloads.append(Workload(plan.hash, files.write_bytes(path, data), example))
                    advance(1)
            found = self.device.measure_in_turns(workloads, MEASURED_ROUNDS, memory)
        measured = [with_costs(c, found[c.plan.hash], self.bounds.percentile) for c in candidates]
        return found["dense"].percentile_ms(self.bounds.percentile), measured

    def _scored(self, candidates: list[Candidate], bound_ms: float | None) -> list[Candidate]:
        """All candidates, those within the budget with their score after some recovery."""
        plans = [c.plan for c in candidates if self._fits(c, bound_ms)]
        found: dict[str, Scored] = {}
        with console.progress("scoring candidates", len(plans), "plans") as advance:
            for plan, scored in zip(plans, self.cluster.map(self._trial, plans), strict=True):
                found[plan.hash] = scored
                advance(1, f"{scored[0]:.4f}")
        pairs = ((c, *found.get(c.plan.hash, (None, None))) for c in candidates)
        return [replace(c, score=score, per_example=each) for c, score, each in pairs]

    def _fits(self, candidate: Candidate, bound_ms: float | None) -> bool:
        """Whether all that was measured is within its bound."""
        pairs = (
            (candidate.measured_ms, bound_ms and WITHIN * bound_ms),
            (candidate.peak_memory_mb, self.bounds.peak_memory_mb),
            (candidate.size_mb, self.bounds.size_mb),
        )
        return all(got is None or bound is None or got <= bound for got, bound in pairs)


def _lowered(sites: Sites, lowering: Lowering, plan: Plan) -> bytes:
    """The cut program as a file."""
    program = apply(sites.program, plan, sites)
    return lower_graph(*static_graph(program), lowering).data


def _hashes(rounds: Sequence[Round]) -> set[str]:
    return {c.plan.hash for each in rounds for c in each.candidates}


def with_costs(candidate: Candidate, found: Measurement, percentile: int) -> Candidate:
    """The candidate with what was measured."""
    memory = found.peak_memory_mb
    return replace(
        candidate,
        measured_ms=found.percentile_ms(percentile),
        peak_memory_mb=None if memory is None else memory * MB_PER_MIB,
        size_mb=found.file_size_mb * MB_PER_MIB,
    )


def _off(
    measured: Sequence[float | None], predicted: Sequence[float], bound: float | None
) -> float:
    """The median of measured over predicted above the bound; 1 where nothing is."""
    pairs = zip(measured, predicted, strict=True)
    off = [got / said for got, said in pairs if bound is not None and got and got > bound]
    return statistics.median(off) if off else 1.0


def _around(weights: Mapping[str, float], axes: Sequence[str]) -> list[dict[str, float]]:
    """The weights with one of these axes' factor moved; the width's is the unit of the others."""
    return [
        {**weights, axis: weights.get(axis, 1.0) * factor}
        for axis in axes
        for factor in AXIS_FACTORS
    ]

"""What a search tried: plans with what was predicted and found, round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgeprune.plan import Plan
from edgeprune.solve import Certificate, FrontPoint
from edgeprune.validate.verdict import Turn


@dataclass(frozen=True)
class Correction:
    """What a cost near its bound is, over what the table says; as known so far."""

    latency: float = 1.0
    memory: float = 1.0
    size: float = 1.0


@dataclass(frozen=True)
class Candidate:
    """One plan with what was predicted and what was found.

    Attributes:
        predicted_ms: by the cost table, with the correction of its round.
        measured_ms: on the device, the budget's percentile; None without one.
        peak_memory_mb: measured where the budget bounds it.
        size_mb: of the lowered file; None without a device.
        damage: predicted output movement, relative to the outputs' spread: the sum of what its
            cuts do alone, whatever the weights.
        weights: axis -> factor on its damage with which the plan was solved for.
        certificate: how good the plan is under those weights, proved.
        score: after the refit and the trial distillation: the task's validation score, or minus
            the measured output movement where the task has none; None when it was over budget.
        per_example: the numbers whose mean ``score`` is, if the task gives them.
    """

    plan: Plan
    predicted_ms: float
    measured_ms: float | None
    damage: float
    weights: Mapping[str, float]
    certificate: Certificate
    peak_memory_mb: float | None = None
    size_mb: float | None = None
    score: float | None = None
    per_example: tuple[float, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Round:
    """One pass of solving and measuring.

    Attributes:
        correction: of the table, as known before the round.
        dense_ms: the dense model's latency in the same measurement.
    """

    correction: Correction
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
        """The candidate that won; of those that are all over budget, the one nearest to it.

        Rounds are measured at other moments of the device: each has its own bound.
        """
        every = [(c, each) for each in self.rounds for c in each.candidates]
        scored = [c for c, _ in every if c.score is not None]
        if scored:
            return best_of(scored)
        return min(every, key=lambda found: _over(*found))[0]

    @property
    def plan(self) -> Plan:
        """The plan of the candidate that won."""
        return self.chosen.plan

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Of the closed loop: one for every correction of the table; none without a device."""
        found = []
        for correction in corrections(self.rounds):
            rounds = [each for each in self.rounds if each.correction == correction]
            plans = [c for each in rounds for c in each.candidates if c.measured_ms is not None]
            over = sum(c.score is None for c in plans)
            found.append(Turn(correction.latency, len(plans), over))
        return tuple(turn for turn in found if turn.plans)

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
            Round(
                Correction(**r["correction"]),
                r["bound_ms"],
                r["dense_ms"],
                tuple(_candidate(c) for c in r["candidates"]),
            )
            for r in body["rounds"]
        )
        front = tuple(FrontPoint.from_json(point) for point in body["front"])
        return cls(front, rounds)


def corrections(rounds: Sequence[Round]) -> tuple[Correction, ...]:
    """What the table was corrected by, in order; rounds around a good plan keep the last one."""
    return tuple(dict.fromkeys(each.correction for each in rounds))


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """Of those within one standard error of the highest score, the plan of the least damage.

    The one-standard-error rule (Breiman et al. 1984): what a small validation split cannot tell
    apart is told apart by the calibration data.

    Args:
        candidates: with scores.
    """
    top = max(candidates, key=lambda c: -math.inf if c.score is None else c.score)
    return min((c for c in candidates if c is top or _as_good(c, top)), key=lambda c: c.damage)


def _over(candidate: Candidate, found: Round) -> float:
    return (candidate.measured_ms or candidate.predicted_ms) / (found.bound_ms or 1.0)


def _as_good(candidate: Candidate, top: Candidate) -> bool:
    """Whether it lacks at most one standard error (paired over the examples) of the top score."""
    if candidate.per_example is None or top.per_example is None or len(top.per_example) < 2:
        return candidate.score == top.score
    lacking = np.subtract(top.per_example, candidate.per_example)
    return float(lacking.mean()) <= float(lacking.std(ddof=1)) / math.sqrt(len(lacking))


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return asdict(candidate) | {"plan": candidate.plan.to_json()}


def _candidate(body: dict[str, Any]) -> Candidate:
    each = body["per_example"]
    return Candidate(
        **body
        | {
            "plan": Plan.from_json(body["plan"]),
            "certificate": Certificate(**body["certificate"]),
            "per_example": None if each is None else tuple(each),
        }
    )

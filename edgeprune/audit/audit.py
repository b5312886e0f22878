"""The audit of one plan: equality, twins, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from edgeprune import console
from edgeprune.audit.equality import Equality, compare, maskable
from edgeprune.audit.ranks import (
    OracleRank,
    SublayerRanks,
    oracle_ranks,
    sublayer_damage,
    sublayer_rank,
    sublayer_ranks,
)
from edgeprune.audit.twins import random_twin, worst_twin
from edgeprune.errors import InputError
from edgeprune.importance import DEFAULT, Evidence, rank_units
from edgeprune.plan import Plan, check_plan
from edgeprune.program import Program
from edgeprune.recover import refit
from edgeprune.sites import Sites
from edgeprune.surgery import apply
from edgeprune.task import Batch, Task, blaming

FEWEST_SEEDS = 3
# Examples that damage is measured on: places it within a few percent.
HELD_EXAMPLES = 64
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Worth:
    """What one plan does.

    Attributes:
        damage, refit_damage: how far the outputs move on examples that the refit did not see,
            squared and over their spread, before and after the least-squares refit.
        score, refit_score: the task's validation score; None where the task has none.
    """

    damage: float
    refit_damage: float
    score: float | None
    refit_score: float | None


@dataclass(frozen=True)
class Claim:
    """Whether the plan may be called better than random.

    Attributes:
        measure: a field of :class:`Worth`.
        plan: the plan's own.
        bound: where a random plan would still be expected, with 95% confidence: Student's
            one-sided prediction bound from the random twins.
        better: beyond the bound; when False, the claim is withheld.
    """

    measure: str
    plan: float
    bound: float
    better: bool

    @property
    def hopeless(self) -> bool:
        """Whether no plan at all is beyond the bound: damage is never negative."""
        return self.bound <= 0 and self.measure in ("damage", "refit_damage")


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        plan: hash of the plan.
        criterion: that ranks the units, for the worst twin and against the oracle.
        equality: masked against removed; empty where nothing of the plan can be masked.
        unmasked: names of cuts that masking cannot stand for.
        worth: of the plan.
        random: of a random twin for each seed.
        worst: of the twin that keeps what the criterion would cut first.
        claims: damage and score, before and after the refit.
        ranks: the criterion against single-unit removal, site by site; last the sub-layers.
        sublayers: removal damage on disjoint parts of the data.
        fit_examples, held_examples: that units were ranked and refitted on, and measured on.
    """

    plan: str
    criterion: str
    equality: tuple[Equality, ...]
    unmasked: tuple[str, ...]
    worth: Worth
    random: tuple[Worth, ...]
    worst: Worth
    claims: tuple[Claim, ...]
    ranks: tuple[OracleRank, ...]
    sublayers: SublayerRanks | None
    fit_examples: int
    held_examples: int

    @property
    def holds(self) -> bool:
        """Whether masked equals removed wherever that was checked."""
        return all(each.holds for each in self.equality)

    def to_json(self) -> dict[str, Any]:
        """As stored in ``audit.json``."""
        return asdict(self) | {"holds": self.holds}


def audit(
    task: Task,
    sites: Sites,
    plan: Plan,
    calibration: Sequence[Batch],
    criterion: str = DEFAULT,
    seeds: int = FEWEST_SEEDS,
) -> Audit:
    """Audit a plan.

    Args:
        task: gives the validation score, if it has one; the test split is not read.
        sites: of the task's program.
        plan: made for that program.
        calibration: batches without labels, in two halves: units are ranked and matrices refitted
            on one, damage is measured on the other.
        criterion: what the plan's units were chosen by.
        seeds: random twins, and parts of the data that sub-layers are ranked on; 3 or more.

    Raises:
        InputError: the plan does not fit or cuts nothing, or there are too few seeds or examples.
    """
    check_plan(plan, sites)
    if not plan.kept:
        raise InputError("plan: cuts no site's units and no sub-layer; there is nothing to audit")
    if seeds < FEWEST_SEEDS:
        raise InputError(f"--seeds: got {seeds}, wanted {FEWEST_SEEDS} or more for a spread")
    examples = _examples(calibration, least=2 * seeds)
    half = len(examples[0]) // 2
    fit = Evidence(sites, _batches(examples, 0, half))
    held = Evidence(sites, _batches(examples, half, half + HELD_EXAMPLES))
    parts = [Evidence(sites, _batches(examples, *span)) for span in _spans(len(examples[0]), seeds)]
    orders = rank_units(fit, criterion)
    cuts, unmasked = maskable(sites, plan)
    judge = _Judge(task, sites, fit, held)
    twins = [random_twin(sites, plan, seed) for seed in range(seeds)]
    worst = worst_twin(sites, plan, orders, _removal(fit, plan))
    worth, *others = judge.all([plan, worst, *twins])
    width = [name for name in plan.kept if name in orders]
    among = sublayer_rank(fit)
    return Audit(
        plan.hash,
        criterion,
        compare(sites, cuts, held.batches[0]) if cuts.kept else (),
        unmasked,
        worth,
        tuple(others[1:]),
        others[0],
        _claims(worth, others[1:]),
        oracle_ranks(held, orders, width) + ((among,) if among else ()),
        sublayer_ranks(parts) if sites.residuals else None,
        half,
        sum(len(batch[0]) for batch in held.batches),
    )


@dataclass(frozen=True)
class _Judge:
    """Measures plans, each before and after its refit."""

    task: Task
    sites: Sites
    fit: Evidence
    held: Evidence

    def all(self, plans: Sequence[Plan]) -> list[Worth]:
        found = []
        with console.progress("measuring twins", total=len(plans), unit="plans") as advance:
            for plan in plans:
                found.append(self._worth(plan))
                advance(1)
        return found

    def _worth(self, plan: Plan) -> Worth:
        cut = apply(self.sites.program, plan, self.sites)
        mended = refit(self.sites, plan, self.fit.batches)
        damage, after = (self.held.moved_by(each) for each in (cut, mended))
        return Worth(damage, after, self._score(cut), self._score(mended))

    @torch.no_grad()
    def _score(self, program: Program) -> float | None:
        with blaming(self.task, "validate"):
            score = self.task.validate(lambda batch: program(*program.fit(batch)))
        return None if score is None else float(np.mean(score))


def _removal(evidence: Evidence, plan: Plan) -> Mapping[str, float]:
    """Sub-layer or layer -> damage of removing it; a layer's is the sum of its parts'.

    Measured only where the plan removes any.
    """
    if all(plan.kept.values()):
        return {}
    found = sublayer_damage(evidence)
    for layer in evidence.sites.layers:
        found[layer.name] = sum(found[part.name] for part in layer.sublayers)
    return found


def _claims(worth: Worth, random: Sequence[Worth]) -> tuple[Claim, ...]:
    found = []
    for measure, sign in (("damage", 1), ("refit_damage", 1), ("score", -1), ("refit_score", -1)):
        ours = getattr(worth, measure)
        if ours is None:
            continue
        bound = sign * _bound([sign * getattr(each, measure) for each in random])
        found.append(Claim(measure, ours, bound, bool(sign * ours < sign * bound)))
    return tuple(found)


def _bound(values: Sequence[float]) -> float:
    """Below it, one more value of the same kind is not expected: mean - t s sqrt(1 + 1/n)."""
    n = len(values)
    spread = float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    return float(np.mean(values)) - float(student.ppf(CONFIDENCE, n - 1)) * spread


def _examples(calibration: Sequence[Batch], least: int) -> Batch:
    """All examples in a fixed random order."""
    whole = tuple(torch.cat(parts) for parts in zip(*calibration, strict=True))
    if len(whole[0]) < least:
        raise InputError(
            f"audit: got {len(whole[0])} calibration examples, wanted {least} or more. "
            "Give the task more."
        )
    order = torch.randperm(len(whole[0]), generator=torch.Generator().manual_seed(0))
    return tuple(each[order] for each in whole)


def _batches(examples: Batch, start: int, end: int, size: int = 16) -> tuple[Batch, ...]:
    chosen = tuple(each[start:end] for each in examples)
    return tuple(zip(*(each.split(size) for each in chosen), strict=True))


def _spans(count: int, parts: int) -> list[tuple[int, int]]:
    size = min(count // parts, HELD_EXAMPLES // 2)
    return [(i * size, (i + 1) * size) for i in range(parts)]

"""A trial: how well a plan does after a short recovery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch

from edgeprune.errors import InputError
from edgeprune.importance import Evidence
from edgeprune.plan import Plan
from edgeprune.program.program import Program, as_tuple
from edgeprune.recover import distil, refit
from edgeprune.sites import Sites
from edgeprune.task import Batch, Task, blaming, train_batches

Scored: TypeAlias = tuple[float, tuple[float, ...] | None]
"""A score, and the numbers whose mean it is, if the task gives them."""


@dataclass(frozen=True)
class Trial:
    """What plans are scored with; a plan's score does not depend on the others'.

    Attributes:
        steps: of distillation before the score is taken, if the task gives training batches;
            which plan is best before it is not always best after.
        minutes: what those steps may take at most.
    """

    sites: Sites
    task: Task
    calibration: Sequence[Batch]
    steps: int
    minutes: float | None
    seed: int

    @cached_property
    def evidence(self) -> Evidence:
        """The dense outputs that plans of a task without a validation score are held to."""
        return Evidence(self.sites, self.calibration)

    def __call__(self, plan: Plan) -> Scored:
        """Recover the plan and score it.

        Raises:
            InputError: the task's own code fails, or gives what is no score.
        """
        return self._score(self._recovered(plan))

    def _recovered(self, plan: Plan) -> Program:
        program = refit(self.sites, plan, self.calibration)
        batches = train_batches(self.task) if self.steps else None
        if batches is None:
            return program
        return distil(
            program,
            self.sites.program,
            batches,
            steps=self.steps,
            minutes=self.minutes,
            seed=self.seed,
        ).program

    @torch.no_grad()
    def _score(self, program: Program) -> Scored:
        with blaming(self.task, "validate"):
            score = self.task.validate(lambda batch: program(*batch))
        if score is not None:
            numbers = np.asarray(score, dtype=float)
            if not numbers.size or not np.isfinite(numbers).all():
                raise InputError(
                    f"task {self.task.name}: validate() gave {score!r}, wanted finite numbers"
                )
            each = tuple(numbers.tolist()) if numbers.ndim == 1 else None
            return float(numbers.mean()), each
        outputs = (as_tuple(program(*batch)) for batch in self.evidence.batches)
        return -self.evidence.moved(outputs), None
